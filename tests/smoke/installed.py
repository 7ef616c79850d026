"""What ``wheel.sh`` does with the installed package: installed.py SITE_PACKAGES SDIST.

It is the wheel's, it is whole, and it builds, saves, loads and runs a network.
"""

from __future__ import annotations

import sys
import tarfile
from importlib.metadata import files
from pathlib import Path

import torch

import mpq_compile as mpq

# Symlinked folders, and what is no Python.
NEEDED = (
    "kernels/__init__.py",
    "kernels/tier.py",
    "hw_profiles/x86_64_vnni.yaml",
    "schemas/plan.json",
    "report/frontier.html",
    "py.typed",
)


def check_files(site: str, sdist: str) -> None:
    """Raise where the package is another one than the wheel's, or lacks files."""
    place = Path(mpq.__file__).resolve()
    assert place.is_relative_to(Path(site).resolve()), f"{place} is not the wheel's"
    shipped = {str(path) for path in files("mpq_compile") or ()}
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for name in (f"mpq_compile/{name}" for name in NEEDED):
        assert name in shipped, f"the wheel lacks {name}"
        assert name in packed, f"the sdist lacks {name}"
    measured = [name for name in shipped if name.endswith(".jsonl.gz")]
    assert measured, "the wheel lacks the measurements that ship"


def check_network() -> None:
    """Raise where the device differs from the oracle, or the loaded artifact from the built."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4)
    ).eval()
    x = torch.randn(32, 3, 8, 8)
    net = mpq.assign(model, x[:1], [x], "w8a8")
    found = net(x[:4])
    assert torch.equal(found, net.reference(x[:4]))
    net.save("artifact")
    again = mpq.load("artifact")
    assert all((again(x[i : i + 1].numpy()) == found[i].numpy()).all() for i in range(4))


if __name__ == "__main__":
    check_files(*sys.argv[1:])
    check_network()
    print(f"the wheel at {Path(mpq.__file__).parent} works")

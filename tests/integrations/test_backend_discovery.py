"""The backend is found by its entry point: no import of the package is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
import torch
assert "mpq" in torch._dynamo.list_backends()
assert "mpq_compile" not in sys.modules
model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval()
x = torch.rand(1, 1, 8, 8)
options = {"assignment": "w8a8", "calibration": [x], "verify": False, "tuned": False}
compiled = torch.compile(model, backend="mpq", options=options)
assert (compiled(x) - model(x)).abs().max() < 0.05
"""


def test_an_installed_package_needs_no_import(tmp_path: Path) -> None:
    """With the metadata that ``setup.py`` writes, in a fresh process."""
    metadata = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    made = subprocess.run(metadata, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path, "MPQ_DB": str(tmp_path / "db.sqlite")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

"""Measure this machine for all users: writes hw_profiles/measurements/<fingerprint>.jsonl.gz.

    python scripts/ship_measurements.py [--budget-s SECONDS] [--networks resnet20,…]

Times the sweep of ``mpq profile --sweep``, and what plans of the networks of
``benchmarks/peers.py`` need for their usual candidates, schedules and whole networks included. It
takes minutes, wants a machine without other work, and goes on where it was interrupted: its
database is ``build/shipped.sqlite``. Only rows of the present kernels and toolchain are written,
and networks of the present lowering, so it is to be run again whenever ``kernels``, TVM or
``mpq_compile/lower`` has changed. Exit code 1 where the time ran out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATABASE = ROOT / "build" / "shipped.sqlite"
CANDIDATES = ("fp32", "bf16", "w8a8", "w4a8")
CALIBRATION_SAMPLES = 8
sys.path.insert(0, str(ROOT / "benchmarks"))
# Nothing that was shipped before may answer, and nothing of the user's.
os.environ["MPQ_SHIPPED"] = "0"
os.environ["MPQ_DB"] = str(DATABASE)
# Schedules are searched to the end.
os.environ.setdefault("MPQ_TUNE", "600")

from peer_nets import NETWORKS  # noqa: E402

from mpq_compile.cost.jsonl import write_jsonl  # noqa: E402
from mpq_compile.cost.shipped import SHIPPED_DIR, SUFFIX  # noqa: E402
from mpq_compile.cost.store import Store  # noqa: E402
from mpq_compile.profiling import Profiled, profile, sweep  # noqa: E402
from mpq_compile.runtime.device import LocalDevice  # noqa: E402
from mpq_compile.runtime.fingerprint import kernel_hash, lowering_hash, toolchain_hash  # noqa: E402


def main() -> int:
    """Measure what is missing, then write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-s", type=float, default=3600.0, help="seconds to measure")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, commas between")
    arguments = parser.parse_args()
    DATABASE.parent.mkdir(exist_ok=True)
    if not measured(arguments.networks.split(","), arguments.budget_s):
        print(f"the time ran out; run again to go on ({DATABASE})")
        return 1
    path, count = written()
    print(f"{count} measurements, {path.stat().st_size / 1e3:.0f} kB: {path}")
    return 0


def measured(networks: list[str], budget_s: float) -> bool:
    """Measure the sweep and the networks; return False where the time ran out."""
    end = time.monotonic() + budget_s
    for name in ("the sweep", *networks):
        left_s = end - time.monotonic()
        if left_s <= 0:
            return False
        done = sweep(budget_s=left_s) if name == "the sweep" else profiled(name, left_s)
        print(f"{name}: {done.new} new of {done.needed} in {done.seconds:.0f} s", end=", ")
        print(f"{done.unsettled} not settled", flush=True)
        if not done.complete:
            return False
    return True


def profiled(name: str, budget_s: float) -> Profiled:
    """Measure what plans of a network need."""
    network = NETWORKS[name]
    samples = network.samples(CALIBRATION_SAMPLES, seed=3)
    return profile(
        network.build(), samples[:1], [samples], candidates=CANDIDATES, budget_s=budget_s
    )


def written() -> tuple[Path, int]:
    """Write the rows of this device and of what is installed that were not disturbed."""
    origin = (LocalDevice().fingerprint, toolchain_hash(), kernel_hash())
    with Store(DATABASE, read_only=True) as store:
        rows = [
            (key, value)
            for key, value in store.items()
            if (key.device, key.toolchain, key.kernels) == origin
            and (key.operator != "network" or lowering_hash() in key.shape)
            and value.settled
        ]
    SHIPPED_DIR.mkdir(exist_ok=True)
    path = SHIPPED_DIR / f"{origin[0]}{SUFFIX}"
    write_jsonl(path, rows)
    return path, len(rows)


if __name__ == "__main__":
    sys.exit(main())

"""The four networks against torch fp32 eager, batch 1, in turns in one process.

    python benchmarks/torch_eager.py [--nets resnet20,dscnn]

Prints median ms of ours (all fp32, all w8a8) and of torch, and torch divided by ours. A pause
before each block lets the other runtime's threads fall asleep.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from shared_nets import NAMES, load_net
from torch import Tensor

from mpq_compile.pipeline import assign_session
from mpq_compile.session import Session

ROUNDS, CALLS, PAUSE_S = 5, 20, 0.2


def block_ms(run: Callable[[Tensor], object], x: Tensor) -> float:
    """Return the median latency of a block of calls."""
    time.sleep(PAUSE_S)
    for _ in range(3):
        run(x)
    samples = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run(x)
        samples.append((time.perf_counter() - start) * 1e3)
    return statistics.median(samples)


def main() -> None:
    """Print a row a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default=",".join(NAMES))
    print("network      torch fp32   ours fp32        ours w8a8      (ms; torch ÷ ours)")
    for name in parser.parse_args().nets.split(","):
        net = load_net(name, 8)
        session = Session(net.model, net.example, [net.calibration[:16]])
        ours = [assign_session(session, candidate) for candidate in ("fp32", "w8a8")]
        runs = [net.model, *ours]
        with torch.inference_mode():
            rows = [[block_ms(run, net.example) for run in runs] for _ in range(ROUNDS)]
        eager, fp32, w8a8 = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{name:12s} {eager:8.3f}   {fp32:8.3f} ({eager / fp32:5.2f}×)  "
            f"{w8a8:8.3f} ({eager / w8a8:5.2f}×)",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Times an artifact in this process: ``python -m mpq_compile.runtime.timing FOLDER``.

Verification starts this module in fresh processes. It imports TVM's runtime and NumPy, no torch.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.runtime.artifact import open_artifact
from mpq_compile.runtime.executor import Executor
from mpq_compile.runtime.native import as_tensor

_WARM_S = 0.4
_BLOCK_S = 0.12
_BLOCKS = 6


def example_inputs(executor: Executor) -> list[np.ndarray]:
    """Return random inputs of the compiled shapes."""
    generator = np.random.default_rng(0)
    inputs = []
    for spec in executor.manifest.inputs:
        values = generator.standard_normal(spec["shape"])
        integers = not spec["dtype"].startswith("float")
        inputs.append((np.abs(values) if integers else values).astype(spec["dtype"]).reshape(-1))
    return inputs


def time_blocks(
    executor: Executor, blocks: int = _BLOCKS, block_s: float = _BLOCK_S
) -> list[list[float]]:
    """Return the latency of single calls in ms, block by block, after warming up."""
    block = _block_timer(executor, _WARM_S, block_s)
    return [block() for _ in range(blocks)]


def time_in_turns(
    executors: Sequence[Executor], rounds: int = 7, block_s: float = 0.04
) -> list[list[float]]:
    """Return block medians in ms of each network; every round visits all of them.

    What disturbs the machine for a while then disturbs all alike, so that ratios hold.
    """
    blocks = [_block_timer(executor, 0.1, block_s) for executor in executors]
    rows = [[statistics.median(block()) for block in blocks] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


def _block_timer(executor: Executor, warm_s: float, block_s: float) -> Callable[[], list[float]]:
    """Warm up; return a function that gives the latencies (ms) of a block of calls."""
    tensors = [as_tensor(value) for value in example_inputs(executor)]
    call = _call(executor, tensors)
    end = time.perf_counter() + warm_s
    once = [call()]
    while time.perf_counter() < end:
        once.append(call())
    number = max(5, min(2000, int(block_s * 1e3 / max(statistics.median(once), 1e-4))))

    def block() -> list[float]:
        call()  # the first call finds caches that another network filled
        return [call() for _ in range(number)]

    return block


def _call(executor: Executor, tensors: Sequence[Any]) -> Any:
    def call() -> float:
        start = time.perf_counter()
        executor.run_flat(tensors)
        return (time.perf_counter() - start) * 1e3

    return call


def summary(blocks: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return per-block medians and 95th percentiles, ms."""
    return {
        "medians_ms": [statistics.median(block) for block in blocks],
        "p95_ms": [float(np.percentile(block, 95)) for block in blocks],
        "calls": sum(len(block) for block in blocks),
    }


def main(arguments: Sequence[str]) -> None:
    """Time the artifact named first; print one JSON object."""
    folder = Path(arguments[0])
    manifest, _ = open_artifact(folder)
    executor = Executor(folder, manifest)
    print(json.dumps(summary(time_blocks(executor))))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Times an artifact in this process: ``python -m mpq_compile.runtime.timing FOLDER``.

Verification starts this module in fresh processes. It imports TVM's runtime and NumPy, no torch.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.runtime.artifact import open_artifact
from mpq_compile.runtime.executor import Executor

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
    import tvm

    tensors = [tvm.runtime.tensor(value) for value in example_inputs(executor)]
    call = _call(executor, tensors)
    end = time.perf_counter() + _WARM_S
    once = [call()]
    while time.perf_counter() < end:
        once.append(call())
    number = max(5, min(2000, int(block_s * 1e3 / max(statistics.median(once), 1e-4))))
    return [[call() for _ in range(number)] for _ in range(blocks)]


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
    print(json.dumps(summary(time_blocks(Executor(folder, manifest)))))


if __name__ == "__main__":
    main(sys.argv[1:])

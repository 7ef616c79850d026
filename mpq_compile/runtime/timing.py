"""Times artifacts in this process: ``python -m mpq_compile.runtime.timing BLOCKS FOLDER…``.

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
# A block of one network, and of each of several that are timed in turns.
BLOCK_S, _TURN_S = 0.12, 0.04


def example_inputs(executor: Executor) -> list[np.ndarray]:
    """Return random inputs of the compiled shapes."""
    generator = np.random.default_rng(0)
    inputs = []
    for spec in executor.manifest.inputs:
        values = generator.standard_normal(spec["shape"])
        integers = not spec["dtype"].startswith("float")
        inputs.append((np.abs(values) if integers else values).astype(spec["dtype"]).reshape(-1))
    return inputs


def time_in_turns(
    executors: Sequence[Executor], blocks: int, block_s: float = BLOCK_S
) -> list[list[list[float]]]:
    """Return latencies in ms by network, block and call; every round visits all networks.

    What disturbs the machine for a while then disturbs all alike, so that ratios hold.
    """
    warm_s = _WARM_S if len(executors) == 1 else 0.1
    timers = [_block_timer(executor, warm_s, block_s) for executor in executors]
    rounds = [[block() for block in timers] for _ in range(blocks)]
    return [list(column) for column in zip(*rounds, strict=True)]


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


def block_medians(blocks: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of each block."""
    return [statistics.median(block) for block in blocks]


def time_artifacts(folders: Sequence[Path], blocks: int) -> list[list[list[float]]]:
    """Load artifacts and time them in turns; see :func:`time_in_turns`."""
    executors = [Executor(folder, open_artifact(folder)[0]) for folder in folders]
    block_s = BLOCK_S if len(executors) == 1 else _TURN_S
    return time_in_turns(executors, blocks, block_s)


def main(arguments: Sequence[str]) -> None:
    """Time artifacts: the number of blocks, then the folders; print latencies as one JSON list."""
    blocks, *folders = arguments
    print(json.dumps(time_artifacts([Path(folder) for folder in folders], int(blocks))))


if __name__ == "__main__":
    main(sys.argv[1:])

"""One kernel, compiled and timed on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpq_compile.kernels import packing
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload

Workload = ConvWorkload | LinearWorkload | ConvertWorkload | QuantizeRowsWorkload
# Times one block of calls; seconds a call.
Run = Callable[[], float]

# A block of calls this long makes the clock's resolution and the call's overhead negligible.
BLOCK_S = 2e-3
_DTYPES = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One workload to time, and the operator it is filed under.

    ``choice`` is the schedule of a matrix multiply; None is the cost model's.
    """

    operator: str
    workload: Workload
    choice: Choice | None = None


def compiled_kernel(task: Task, tier: Tier, threads: int) -> Any:
    """Return the kernel of a task as a built TVM module with the function ``main``."""
    import tvm

    from mpq_compile.lower.emit import kernel_function

    function = kernel_function(task.workload, tier, threads, task.choice)
    function = function.with_attr("global_symbol", "main")
    return tvm.compile(function, target=tvm.target.Target(tier.target(threads)))


def write_kernel(task: Task, tier: Tier, threads: int, path: Path) -> None:
    """Compile the kernel of a task and write it to ``path``, a library with the function ``main``.

    Raises:
        LoweringError: The tier is of another architecture, and no cross linker is installed.
    """
    from mpq_compile.lower.linker import linker

    link = linker(tier)
    compiled_kernel(task, tier, threads).export_library(str(path), fcompile=link)


def runner(task: Task, tier: Tier, threads: int) -> Run:
    """Compile a kernel; return a function that times one block and gives seconds a call."""
    import tvm

    built = compiled_kernel(task, tier, threads)
    if tier.dot == "amx":
        from mpq_compile.runtime.executor import request_amx

        request_amx()
    arguments = [tvm.runtime.tensor(array) for array in kernel_arguments(task.workload, tier)]
    call = built["main"]
    call(*arguments)
    start = time.perf_counter()
    call(*arguments)
    once = time.perf_counter() - start
    evaluate = built.mod.time_evaluator("main", tvm.cpu(), number=block_calls(once), repeat=1)
    return lambda: float(evaluate(*arguments).mean)


def block_calls(once_s: float) -> int:
    """Return how many calls of ``once_s`` seconds make a block."""
    return max(3, min(2000, math.ceil(BLOCK_S / max(once_s, 1e-7))))


def kernel_arguments(workload: Workload, tier: Tier) -> list[np.ndarray]:
    """Return arguments of the right sizes; zero records make every result finite."""
    generator = np.random.default_rng(0)

    def filled(size: int, dtype: str) -> np.ndarray:
        if dtype == "float32":
            return generator.standard_normal(size).astype(np.float32)
        if dtype == "uint16":
            # Small integers would be denormal numbers, with which some processors are slow.
            return packing.bf16_bits(generator.standard_normal(size))
        return generator.integers(0, 100, size).astype(dtype)

    if isinstance(workload, ConvertWorkload):
        record = np.zeros(packing.SCALAR_WORDS, np.int32)
        output = np.zeros(workload.size, _DTYPES[workload.target])
        return [filled(workload.size, _DTYPES[workload.source]), record, output]
    if isinstance(workload, QuantizeRowsWorkload):
        size, rows = workload.rows * workload.features, workload.rows
        return [filled(size, "float32"), np.zeros(size, np.uint8), np.zeros(rows, np.float32)]
    source = {"int8": "u8", "weight_only": "bf16"}.get(workload.compute, workload.compute)
    elements, dtype = packing.packed_weight_size(workload, tier)
    arguments = [
        filled(workload.input_size, _DTYPES[source]),
        filled(elements, dtype),
        np.zeros(packing.record_words(workload, tier), np.int32),
    ]
    if isinstance(workload, LinearWorkload) and workload.row_scales:
        arguments.append(np.ones(workload.rows, np.float32))
    if workload.residual:
        arguments.append(filled(workload.output_size, _DTYPES[workload.residual]))
    return [*arguments, np.zeros(workload.output_size, _DTYPES[workload.out])]

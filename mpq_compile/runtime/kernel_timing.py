"""One kernel, compiled, run and timed on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.embedding_workload import EmbeddingWorkload
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.runtime import kernel_case as cases
from mpq_compile.runtime.engine import placed

Workload = (
    ConvWorkload | LinearWorkload | ConvertWorkload | QuantizeRowsWorkload | EmbeddingWorkload
)

# A block of calls this long makes the clock's resolution and the call's overhead negligible.
BLOCK_S = 2e-3
# What the arrays of every kernel are drawn from: who knows it knows what must come out.
SEED = 0
_DTYPES = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}


class Run(Protocol):
    """One kernel, built and loaded on a device, with the arguments of ``kernel_arguments``."""

    def time(self) -> float:
        """Time one block of calls; seconds a call."""
        ...

    def outputs(self) -> list[np.ndarray]:
        """Call it once; return what it wrote, as flat arrays (bf16 as uint16 bits)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One workload to time, and the operator it is filed under.

    ``choice`` is the schedule of a matrix multiply; None is the cost model's.
    """

    operator: str
    workload: Workload
    choice: Choice | None = None


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """A kernel in this process.

    Args:
        call: The kernel.
        evaluate: TVM's timer of a block of calls.
        arguments: TVM tensors, the outputs last.
        output_count: How many of them are outputs.
    """

    call: Callable[..., Any]
    evaluate: Callable[..., Any]
    arguments: Sequence[Any]
    output_count: int

    def time(self) -> float:
        """Time one block of calls; seconds a call."""
        return float(self.evaluate(*self.arguments).mean)

    def outputs(self) -> list[np.ndarray]:
        """Call it once; return what it wrote."""
        self.call(*self.arguments)
        return [tensor.numpy() for tensor in self.arguments[-self.output_count :]]


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


def local_run(task: Task, tier: Tier, threads: int) -> LocalRun:
    """Compile a kernel into this process and call it a few times."""
    import tvm

    built = compiled_kernel(task, tier, threads)
    if tier.dot == "amx":
        from mpq_compile.runtime.executor import request_amx

        request_amx()
    arrays = placed(kernel_arguments(task.workload, tier))
    arguments = [tvm.runtime.from_dlpack(array) for array in arrays]
    call = built["main"]
    number = block_calls(min(_seconds(call, arguments) for _ in range(4)))
    return LocalRun(
        call=call,
        evaluate=built.mod.time_evaluator("main", tvm.cpu(), number=number, repeat=1),
        arguments=arguments,
        output_count=len(blank_outputs(task.workload)),
    )


def _seconds(call: Callable[..., Any], arguments: Sequence[Any]) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def block_calls(once_s: float) -> int:
    """Return how many calls of ``once_s`` seconds make a block, beside the one that warms it up."""
    return max(1, min(2000, math.ceil(BLOCK_S / max(once_s, 1e-7))))


def kernel_arguments(workload: Workload, tier: Tier) -> list[np.ndarray]:
    """Return the flat arrays that a kernel is called with: inputs, then blank outputs."""
    return [*_inputs(workload, tier), *blank_outputs(workload)]


def blank_outputs(workload: Workload) -> list[np.ndarray]:
    """Return zeros for what a kernel writes."""
    if isinstance(workload, ConvertWorkload):
        return [np.zeros(workload.size, _DTYPES[workload.target])]
    if isinstance(workload, QuantizeRowsWorkload):
        size = workload.rows * workload.features
        return [np.zeros(size, np.uint8), np.zeros(workload.rows, np.float32)]
    if isinstance(workload, EmbeddingWorkload):
        return [np.zeros(workload.tokens * workload.width, np.float32)]
    return [np.zeros(workload.stored_size, _DTYPES[workload.out])]


@lru_cache(maxsize=1)
def _inputs(workload: Workload, tier: Tier) -> Sequence[np.ndarray]:
    """Return the inputs; the schedules of one workload are built one after the other, with equal
    arrays, and packing large weights takes seconds."""
    if isinstance(workload, ConvertWorkload):
        return cases.convert_arguments(workload, cases.make_convert_case(workload, SEED))
    if isinstance(workload, QuantizeRowsWorkload):
        return [cases.row_values(workload.rows, workload.features, SEED).reshape(-1)]
    if isinstance(workload, EmbeddingWorkload):
        return cases.embedding_arguments(workload, cases.make_embedding_case(workload, SEED))
    return cases.case_arguments(workload, tier, cases.make_case(workload, SEED))

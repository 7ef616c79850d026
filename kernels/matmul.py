"""The kernel of a matrix-multiply workload: chooses the generator."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mpq_compile.kernels import depthwise, gemv, implicit_gemm, matrix_block, narrow_block, tiles
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.gemv_layout import reads_codes
from mpq_compile.kernels.geometry import is_depthwise, sums_narrow, uses_matrix_products, uses_tiles
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload


def generate(workload: Workload, tier: Tier, threads: int, choice: Choice | None = None) -> Any:
    """Return the PrimFunc ``main(X, W, E, [D], [R], O)`` of a workload on a tier.

    All arguments are flat buffers: X the input (u8, or uint16 bits of bf16, or float32; NHWC or
    [rows, K]), W from ``packing.pack_weight``, E from ``packing.pack_epilogue``, D the
    float32 scales of the input's rows and R the residual where the workload has them, O the output.
    ``choice`` is one of :func:`choices`; None is the first.
    """
    return _generator(workload, tier).generate(workload, tier, threads, choice)


def choices(workload: Workload, tier: Tier, threads: int) -> list[Choice]:
    """Return the schedules worth trying, the cost model's first: at most eight, often fewer."""
    offered: list[Choice] = _generator(workload, tier).choices(workload, tier, threads)
    return offered


def _generator(workload: Workload, tier: Tier) -> ModuleType:
    """Return the module with ``generate`` and ``choices`` for a workload."""
    if is_depthwise(workload):
        return depthwise
    if reads_codes(workload):
        return gemv
    if uses_tiles(workload, tier):
        return tiles
    if uses_matrix_products(workload, tier):
        return matrix_block
    if sums_narrow(workload, tier):
        return narrow_block
    return implicit_gemm

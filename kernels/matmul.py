"""The kernel of a matrix-multiply workload: chooses the generator."""

from __future__ import annotations

from typing import Any

from mpq_compile.kernels import depthwise, gemv, implicit_gemm, matrix_block, tiles
from mpq_compile.kernels.gemv_layout import reads_codes
from mpq_compile.kernels.geometry import is_depthwise, uses_matrix_products, uses_tiles
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import LinearWorkload, Workload


def generate(workload: Workload, tier: Tier, threads: int) -> Any:
    """Return the PrimFunc ``main(X, W, E, [D], [R], O)`` of a workload on a tier.

    All arguments are flat buffers: X the input (u8, or uint16 bits of bf16, or float32; NHWC or
    [rows, K]), W from ``packing.pack_weight``, E from ``packing.pack_epilogue``, D the
    float32 scales of the input's rows and R the residual where the workload has them, O the output.
    """
    if is_depthwise(workload):
        return depthwise.generate(workload, tier, threads)
    if isinstance(workload, LinearWorkload) and reads_codes(workload):
        return gemv.generate(workload, tier, threads)
    if uses_tiles(workload, tier):
        return tiles.generate(workload, tier, threads)
    if uses_matrix_products(workload, tier):
        return matrix_block.generate(workload, tier, threads)
    return implicit_gemm.generate(workload, tier, threads)

"""Arguments of the matrix-multiply kernels, and the epilogue that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.border import border_of
from mpq_compile.kernels.emit import FORMAT_DTYPE
from mpq_compile.kernels.epilogue import BF16_OF_F32, Epilogue
from mpq_compile.kernels.geometry import geometry
from mpq_compile.kernels.packing import (
    compensation_rows,
    packed_weight_size,
    padded_channels,
    record_words,
)
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import LinearWorkload, Workload

INPUT_DTYPE = {"int8": "uint8", "fp32": "float32", "bf16": "uint16", "weight_only": "uint16"}
ELEMENT_BYTES = {"uint8": 1, "int8": 1, "int16": 2, "uint16": 2, "int32": 4, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """Arguments of a kernel, in order; those that a workload lacks are None."""

    inputs: Any
    weights: Any
    record: Any
    row_scales: Any
    residual: Any
    output: Any


def declare_arguments(workload: Workload, tier: Tier) -> Buffers:
    """Declare X, W, E, [D], [R], O of the function under construction."""
    weights, weight_dtype = packed_weight_size(workload, tier)
    inputs = T.arg("X", T.buffer((workload.input_size,), INPUT_DTYPE[workload.compute]))
    packed = T.arg("W", T.buffer((weights,), weight_dtype))
    record = T.arg("E", T.buffer((record_words(workload, tier),), "int32"))
    row_scales = residual = None
    if isinstance(workload, LinearWorkload) and workload.row_scales:
        row_scales = T.arg("D", T.buffer((workload.rows,), "float32"))
    if workload.residual:
        dtype = FORMAT_DTYPE[workload.residual]
        residual = T.arg("R", T.buffer((workload.output_size,), dtype))
    output = T.arg("O", T.buffer((workload.stored_size,), FORMAT_DTYPE[workload.out]))
    return Buffers(
        inputs=inputs,
        weights=packed,
        record=record,
        row_scales=row_scales,
        residual=residual,
        output=output,
    )


def epilogue_of(workload: Workload, tier: Tier, buffers: Buffers) -> Epilogue:
    """Return the epilogue of a workload for vectors of the tier's lanes."""
    shape = geometry(workload)
    width = min(tier.lanes, shape.group_outputs)
    # LLVM joins the stores of parts of vectors, and cannot select the shuffle of bf16 that results
    # (v16bf16 VPERM2X128): parts are rounded as integers.
    rounds = tier.bf16_dot and workload.out == "bf16" and width == tier.lanes
    return Epilogue(
        record=buffers.record,
        row_scales=buffers.row_scales,
        residual=buffers.residual,
        output=buffers.output,
        residual_format=workload.residual,
        out_format=workload.out,
        columns=padded_channels(workload, tier),
        lanes=tier.lanes,
        width=width,
        scale_groups=shape.scale_groups,
        compensation_rows=compensation_rows(workload, tier),
        border=border_of(workload),
        bf16_rounding=BF16_OF_F32 if rounds else "",
    )

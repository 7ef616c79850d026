"""Arguments of one kernel that make a test of it: random, reproducible, none of them trivial.

A kernel that is timed computes something, so that its result can be held against the oracle before
its time is believed. NumPy only. Float arrays hold values that are exact in their format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpq_compile.kernels import packing
from mpq_compile.kernels.elementwise_workload import ConvertWorkload
from mpq_compile.kernels.embedding_workload import EmbeddingWorkload, pack_table
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.quant.multipliers import ROW_ZERO_POINT

Matmul = ConvWorkload | LinearWorkload
_WEIGHT_RANGES = {8: (-127, 127), 4: (-8, 7), 2: (-2, 1)}
_UNBOUNDED = (float("-inf"), float("inf"))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Arrays of one call of a matrix multiply.

    Args:
        x: [B, H, W, C] or [rows, K]; u8 codes, or float32.
        weight: Shaped as in PyTorch; int8, or float32.
        scale, bias: S and B of the epilogue, float32: [N], or S [N, groups].
        row_scales: float32 [rows] of dynamic linears, or None.
        residual: Shaped like the output, or None.
        residual_scale: R of the epilogue.
        zero_points: Those of input, residual and output.
        bounds: (lo, hi) of the epilogue.
    """

    x: np.ndarray
    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    row_scales: np.ndarray | None
    residual: np.ndarray | None
    residual_scale: float
    zero_points: tuple[int, int, int]
    bounds: tuple[float, float]


def make_case(workload: Matmul, seed: int) -> Case:
    """Draw a case whose outputs spread over the range of the output format."""
    rng = np.random.default_rng(seed)
    weight = _weights(workload, rng)
    wide = 60.0 if workload.out == "u8" else 1.0
    groups = weight_groups(workload)
    shape = (len(weight), groups) if groups > 1 else (len(weight),)
    rows = workload.rows if isinstance(workload, LinearWorkload) and workload.row_scales else None
    zero_points = (int(rng.integers(0, 256)), int(rng.integers(0, 256)), int(rng.integers(0, 200)))
    if rows is not None:
        zero_points = (ROW_ZERO_POINT, *zero_points[1:])
    limits = (-float(zero_points[2]), 255.0 - zero_points[2])
    scale = rng.uniform(0.5, 1.5, shape) * wide / _spread(workload, weight)
    return Case(
        x=_values(input_shape(workload), input_format(workload), rng),
        weight=weight,
        scale=scale.astype(np.float32),
        bias=(rng.normal(size=len(weight)) * wide / 4).astype(np.float32),
        row_scales=None if rows is None else rng.uniform(0.3, 3.0, rows).astype(np.float32),
        residual=_values(output_shape(workload), workload.residual, rng)
        if workload.residual
        else None,
        residual_scale=float(np.float32(rng.uniform(0.01, 1.0))),
        zero_points=zero_points,
        bounds=limits if workload.out == "u8" else (-0.7, float("inf")),
    )


def case_arguments(workload: Matmul, tier: Tier, case: Case) -> list[np.ndarray]:
    """Return the flat input arrays of a matrix multiply as the kernel of a tier reads them."""
    record = packing.pack_epilogue(
        workload,
        tier,
        case.weight,
        case.zero_points,
        case.scale,
        case.bias,
        case.residual_scale,
        case.bounds,
    )
    x = as_stored(_bordered(workload, case), input_format(workload))
    arrays = [x, packing.pack_weight(workload, tier, case.weight), record]
    if case.row_scales is not None:
        arrays.append(case.row_scales)
    if case.residual is not None:
        arrays.append(as_stored(case.residual, workload.residual))
    return arrays


@dataclass(frozen=True, kw_only=True)
class ConvertCase:
    """Arguments of a conversion: v = f32(x − zero_points[0]) ⊗ scale, clamped and stored."""

    x: np.ndarray
    scale: float
    zero_points: tuple[int, int]
    bounds: tuple[float, float]


def make_convert_case(workload: ConvertWorkload, seed: int) -> ConvertCase:
    """Draw a case whose outputs spread over the range of the output format."""
    rng = np.random.default_rng(seed)
    zero_in, zero_out = (int(zero) for zero in rng.integers(60, 190, 2))
    reach = {"u8": 60.0, "bf16": 1.0, "fp32": 1.0}
    factor = reach[workload.target] / reach[workload.source]
    to_codes = workload.target == "u8"
    return ConvertCase(
        x=_values((workload.size,), workload.source, rng),
        scale=float(np.float32(rng.uniform(0.5, 1.5) * factor)),
        zero_points=(zero_in if workload.source == "u8" else 0, zero_out if to_codes else 0),
        bounds=(-float(zero_out), 255.0 - zero_out) if to_codes else _UNBOUNDED,
    )


def convert_arguments(workload: ConvertWorkload, case: ConvertCase) -> list[np.ndarray]:
    """Return the flat input arrays of a conversion."""
    record = packing.pack_convert(case.zero_points[0], case.scale, case.bounds, case.zero_points[1])
    return [as_stored(case.x, workload.source), record]


@dataclass(frozen=True, kw_only=True)
class EmbeddingCase:
    """Arguments of a lookup.

    Args:
        numbers: int32 or int64 [tokens].
        table: [rows, width], int8 codes or float32 that are exact in the table's format.
        scale: float32 [rows, groups]; ones for float tables.
    """

    numbers: np.ndarray
    table: np.ndarray
    scale: np.ndarray


def make_embedding_case(workload: EmbeddingWorkload, seed: int) -> EmbeddingCase:
    """Draw a table and the rows that are looked up, the first and the last among them."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, workload.rows, workload.tokens).astype(workload.index)
    numbers[0], numbers[-1] = workload.rows - 1, 0
    shape = (workload.rows, workload.width)
    if workload.compute != "int":
        table = _values(shape, workload.compute, rng)
        return EmbeddingCase(
            numbers=numbers, table=table, scale=np.ones((workload.rows, 1), np.float32)
        )
    low, high = _WEIGHT_RANGES[workload.weight_bits]
    scale = rng.uniform(0.001, 0.1, (workload.rows, workload.groups)).astype(np.float32)
    table = rng.integers(low, high, shape, np.int8, endpoint=True)
    return EmbeddingCase(numbers=numbers, table=table, scale=scale)


def embedding_arguments(workload: EmbeddingWorkload, case: EmbeddingCase) -> list[np.ndarray]:
    """Return the flat input arrays of a lookup."""
    scales = [case.scale.reshape(-1)] if workload.compute == "int" else []
    return [case.numbers, pack_table(workload, case.table), *scales]


def row_values(rows: int, features: int, seed: int) -> np.ndarray:
    """Return float32 [rows, features] for quantization by rows."""
    return np.random.default_rng(seed).standard_normal((rows, features), np.float32)


def input_format(workload: Matmul) -> str:
    """Return the format of the input: u8, bf16 or fp32."""
    return {"int8": "u8", "fp32": "fp32"}.get(workload.compute, "bf16")


def input_shape(workload: Matmul) -> tuple[int, ...]:
    """Return the shape of the input, channels last and without a border."""
    if isinstance(workload, LinearWorkload):
        return (workload.rows, workload.in_features)
    return (workload.batch, workload.height, workload.width, workload.in_channels)


def output_shape(workload: Matmul) -> tuple[int, ...]:
    """Return the shape of the output, channels last and without a border."""
    if isinstance(workload, LinearWorkload):
        return (workload.rows, workload.out_features)
    return (workload.batch, workload.out_height, workload.out_width, workload.out_channels)


def weight_groups(workload: Matmul) -> int:
    """Return how many weight scales an output channel has."""
    return workload.weight_groups if isinstance(workload, LinearWorkload) else 1


def as_stored(values: np.ndarray, fmt: str | None) -> np.ndarray:
    """Return values as a flat array in memory: bf16 as its bits, uint16."""
    if fmt == "bf16":
        return packing.bf16_bits(values).reshape(-1)
    return np.ascontiguousarray(values).reshape(-1)


def as_values(stored: np.ndarray) -> np.ndarray:
    """Return a flat array of :func:`as_stored` as numbers: bits of bf16 as float32."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == "uint16" else stored


def inside(workload: Matmul, values: np.ndarray, zero: int) -> tuple[np.ndarray, bool]:
    """Return a stored output without its border, in its shape; and whether the border is ``zero``.

    ``zero`` is what stands for zero in the output's format.
    """
    shape = output_shape(workload)
    if not isinstance(workload, ConvWorkload) or not any(workload.border):
        return values.reshape(shape), True
    top, left, bottom, right = workload.border
    batch, height, width, channels = shape
    whole = values.reshape(batch, height + top + bottom, width + left + right, channels)
    around = np.ones(whole.shape, bool)
    around[:, top : top + height, left : left + width] = False
    return whole[~around].reshape(shape), bool((whole[around] == zero).all())


def _bordered(workload: Matmul, case: Case) -> np.ndarray:
    """Return the input as it is stored: with its padding where the workload wants that."""
    if not isinstance(workload, ConvWorkload) or not workload.bordered_input:
        return case.x
    top, left, bottom, right = workload.padding
    blank = case.zero_points[0] if workload.compute == "int8" else 0
    around = ((0, 0), (top, bottom), (left, right), (0, 0))
    return np.pad(case.x, around, constant_values=blank)


def _weights(workload: Matmul, rng: np.random.Generator) -> np.ndarray:
    if isinstance(workload, ConvWorkload):
        taps = (workload.in_channels // workload.groups, *workload.kernel)
        shape: tuple[int, ...] = (workload.out_channels, *taps)
    else:
        shape = (workload.out_features, workload.in_features)
    if workload.compute in ("int8", "weight_only"):
        low, high = _WEIGHT_RANGES[workload.weight_bits]
        return rng.integers(low, high, shape, np.int8, endpoint=True)
    values = rng.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    return as_values(packing.bf16_bits(values)) if workload.compute == "bf16" else values


def _spread(workload: Matmul, weight: np.ndarray) -> float:
    """Return about how far the accumulators of a case spread about zero."""
    depth = float(np.prod(weight.shape[1:]))
    mean = float(np.abs(weight, dtype=np.float32).mean())
    return max(np.sqrt(depth) * mean * (74 if workload.compute == "int8" else 1), 1e-6)


def _values(shape: tuple[int, ...], fmt: str | None, rng: np.random.Generator) -> np.ndarray:
    if fmt == "u8":
        return rng.integers(0, 256, shape, np.uint8)
    values = rng.standard_normal(shape, np.float32)
    return as_values(packing.bf16_bits(values)) if fmt == "bf16" else values

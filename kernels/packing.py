"""Parameters in the order in which the kernels read them. NumPy only: no tvm is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpq_compile.kernels.depthwise_layout import depthwise_layout, pack_depthwise
from mpq_compile.kernels.gemv_layout import CodeLayout, code_layout, reads_codes
from mpq_compile.kernels.geometry import (
    Geometry,
    geometry,
    is_depthwise,
    k_group,
    padded_run,
    vector_starts,
)
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import LinearWorkload, Workload

# Words of the scalar part of an epilogue record, int32; floats are stored as their bits.
SCALARS = ("zp_in", "zp_residual", "zp_out", "residual_scale", "lo", "hi", "scale")
SCALAR_WORDS = 16


def pack_scalars(
    zero_points: Sequence[int], residual_scale: float, bounds: Sequence[float]
) -> np.ndarray:
    """Return the scalar words of an epilogue record, int32[16]; see ``SCALARS``."""
    words = np.zeros(SCALAR_WORDS, np.int32)
    words[:3] = zero_points
    floats = np.array([residual_scale, bounds[0], bounds[1]], np.float32)
    words[3:6] = floats.view(np.int32)
    return words


def pack_epilogue(
    workload: Workload,
    tier: Tier,
    weight: np.ndarray,
    zero_points: Sequence[int],
    scale: np.ndarray,
    bias: np.ndarray,
    residual_scale: float,
    bounds: Sequence[float],
) -> np.ndarray:
    """Return the int32 record of a matrix multiply: scalars[16], then B, compensation and S.

    B, and each row of the others, is padded to ``padded_channels``. Where weights are scaled by
    groups there is a row for each, but for S of the few-row kernel, whose blocks read it in order.

    Args:
        weight: Integer (or, for float compute, any) tensor in PyTorch's shape.
        zero_points: Those of input, residual and output.
        scale: S, float32: [N], or [N, groups].
        bias: B, float32 [N].
        residual_scale: R.
        bounds: (lo, hi).
    """
    columns, scales = padded_channels(workload, tier), scale.reshape(len(scale), -1)
    parts = [pack_scalars(zero_points, residual_scale, bounds), _padded_rows(bias[None], columns)]
    if compensation_rows(workload, tier):
        start = compensation(workload, tier, weight, zero_points[0])
        parts.append(_padded_rows(np.atleast_2d(start), columns))
    if _scales_in_blocks(workload):
        assert isinstance(workload, LinearWorkload)
        parts.append(pack_group_scales(scales, code_layout(workload, tier)))
    else:
        parts.append(_padded_rows(scales.T, columns))
    return np.concatenate(parts)


def _padded_rows(rows: np.ndarray, columns: int) -> np.ndarray:
    """Return rows as flat int32 words, floats as their bits, each row padded with zeros."""
    words = np.zeros((len(rows), columns), np.int32)
    words[:, : rows.shape[1]] = _words(rows)
    return words.reshape(-1)


def _words(values: np.ndarray) -> np.ndarray:
    """Return int32, or float32 as its bits."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int32)
    return np.ascontiguousarray(values, np.float32).view(np.int32)


def pack_convert(
    zero_point_in: int, scale: float, bounds: Sequence[float], zero_point: int
) -> np.ndarray:
    """Return the int32[16] record of a conversion: v = f32(x − zp_in) ⊗ scale."""
    words = pack_scalars((zero_point_in, 0, zero_point), 0.0, bounds)
    words[SCALARS.index("scale")] = np.float32(scale).view(np.int32)
    return words


def pack_add(
    zero_points: Sequence[int], scales: Sequence[float], bounds: Sequence[float]
) -> np.ndarray:
    """Return the int32[16] record of an addition; zero points of a, b, out; scales of a, b."""
    words = pack_scalars(zero_points, scales[1], bounds)
    words[SCALARS.index("scale")] = np.float32(scales[0]).view(np.int32)
    return words


def pack_multiply(zero_points: Sequence[int], scale: float, bounds: Sequence[float]) -> np.ndarray:
    """Return the int32[16] record of a product; zero points of a, b, out."""
    words = pack_scalars(zero_points, 0.0, bounds)
    words[SCALARS.index("scale")] = np.float32(scale).view(np.int32)
    return words


def pack_attention(
    zero_points: Sequence[int], scale: float, out_scale: float, bounds: Sequence[float]
) -> np.ndarray:
    """Return the int32[16] record of attention; zero points of q, v, out; scales S and R."""
    words = pack_scalars(zero_points, out_scale, bounds)
    words[SCALARS.index("scale")] = np.float32(scale).view(np.int32)
    return words


def pack_pool(zero_point_in: int, bounds: Sequence[float], zero_point: int) -> np.ndarray:
    """Return the int32[16] record of an average pooling; its scales stand in a table."""
    return pack_scalars((zero_point_in, 0, zero_point), 0.0, bounds)


def pack_windows(rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return pooling windows as int32[2 · (OH + OW)]: [start, end) of rows, then of columns."""
    return np.array([*rows, *columns], np.int32).reshape(-1)


def pack_window_scales(
    rows: Sequence[tuple[int, int]],
    columns: Sequence[tuple[int, int]],
    scale: float,
    divisor: int | None = None,
) -> np.ndarray:
    """Return S of an average pooling, float32[OH · OW].

    S = scale / number of cells, in float64 and rounded once. ``scale`` is input scale / output
    scale; ``divisor`` replaces the number of cells (``count_include_pad``, ``divisor_override``).
    """
    heights = np.array([end - start for start, end in rows], np.float64)
    widths = np.array([end - start for start, end in columns], np.float64)
    cells = heights[:, None] * widths[None, :] if divisor is None else float(divisor)
    table = np.broadcast_to(scale / np.asarray(cells), (len(rows), len(columns)))
    return np.ascontiguousarray(table, np.float32).reshape(-1)


def padded_channels(workload: Workload, tier: Tier) -> int:
    """Return the channels to which an epilogue record pads each row for a workload."""
    shape = geometry(workload)
    return shape.out_channels + max(0, tier.lanes - shape.group_outputs)


def record_words(workload: Workload, tier: Tier) -> int:
    """Return the int32 words of a workload's epilogue record."""
    groups, columns = geometry(workload).scale_groups, padded_channels(workload, tier)
    scales = groups * columns
    if _scales_in_blocks(workload):
        assert isinstance(workload, LinearWorkload)
        scales = code_layout(workload, tier).scale_words
    return SCALAR_WORDS + (1 + compensation_rows(workload, tier)) * columns + scales


def compensation_rows(workload: Workload, tier: Tier) -> int:
    """Return the rows of compensation in a record: one for each weight group that reads one."""
    if _scales_in_blocks(workload):
        assert isinstance(workload, LinearWorkload)
        layout = code_layout(workload, tier)
        return layout.groups if layout.compensated else 0
    return geometry(workload).scale_groups


def _scales_in_blocks(workload: Workload) -> bool:
    return reads_codes(workload) and geometry(workload).scale_groups > 1


def compensation(workload: Workload, tier: Tier, weight: np.ndarray, zero_point: int) -> np.ndarray:
    """Return the int32 start of the accumulators: −zp·Σw, or (128 − zp)·Σw where the kernel
    multiplies x − 128. Shape [N], or [groups, N] where weights are scaled by groups; zeros for
    float compute. ``weight`` is the integer tensor in PyTorch's shape."""
    groups = geometry(workload).scale_groups
    if workload.compute != "int8":
        return np.zeros(len(weight) if groups == 1 else (groups, len(weight)), np.int32)
    sums = weight.reshape(len(weight), groups, -1).sum(2, dtype=np.int64)
    offset = 128 if reads_centred_input(workload, tier) else 0
    start = ((offset - zero_point) * sums.T).astype(np.int32)
    return start[0] if groups == 1 else start


def reads_centred_input(workload: Workload, tier: Tier) -> bool:
    """Tell whether a workload's integer kernel multiplies x − 128 instead of x."""
    return reads_codes(workload) or (tier.dot == "sdot" and not is_depthwise(workload))


def packed_weight_size(workload: Workload, tier: Tier) -> tuple[int, str]:
    """Return (elements, dtype) of a workload's packed weights."""
    if isinstance(workload, LinearWorkload) and reads_codes(workload):
        return code_layout(workload, tier).size, "uint8"
    if is_depthwise(workload):
        return depthwise_layout(workload, tier).size, _WEIGHT_DTYPES[workload.compute]
    shape = geometry(workload)
    vectors = len(vector_starts(shape.group_outputs, tier.lanes))
    runs = shape.runs[0] * shape.runs[1]
    size = shape.groups * vectors * runs * padded_run(workload, tier) * tier.lanes
    return size, _WEIGHT_DTYPES[workload.compute]


def pack_weight(workload: Workload, tier: Tier, weight: np.ndarray) -> np.ndarray:
    """Return the flat weights as the kernel of ``workload`` reads them on ``tier``.

    Args:
        weight: int8, or float32 for float compute; PyTorch's shape, [N, C/groups, KH, KW] or
            [N, K].
    """
    if isinstance(workload, LinearWorkload) and reads_codes(workload):
        return pack_codes(weight, code_layout(workload, tier))
    if is_depthwise(workload):
        packed = pack_depthwise(weight, depthwise_layout(workload, tier))
    else:
        runs = _weight_runs(weight, geometry(workload))
        packed = _interleave(runs, padded_run(workload, tier), tier, k_group(workload, tier))
    if workload.compute == "bf16":
        return bf16_bits(packed)
    return packed.astype(_WEIGHT_DTYPES[workload.compute])


def pack_codes(weight: np.ndarray, layout: CodeLayout) -> np.ndarray:
    """Return integer weights [N, K] as the bytes that the few-row kernel reads."""
    outputs, lanes = len(weight), layout.lanes
    grouped = weight.reshape(outputs, layout.groups, -1).astype(np.int64) + layout.offset
    codes = np.zeros((max(outputs, lanes), layout.groups, layout.run), np.int64)
    codes[:outputs, :, : grouped.shape[2]] = grouped
    fields = codes.reshape(-1, layout.groups, layout.words, layout.steps, layout.k_group)
    places = layout.bits * np.arange(layout.steps)[:, None] + 32 // layout.k_group * np.arange(
        layout.k_group
    )
    masked = fields & (2**layout.bits - 1)
    words = (masked << places).sum((3, 4)).astype(np.uint32)
    starts = np.array(vector_starts(outputs, lanes))
    vectors = words[starts[:, None] + np.arange(lanes)].transpose(0, 2, 3, 1)
    blocks = np.split(vectors, range(layout.block, len(starts), layout.block))
    flat = [block.transpose(1, 2, 0, 3).reshape(-1) for block in blocks]
    return np.ascontiguousarray(np.concatenate(flat)).view(np.uint8)


def pack_group_scales(scale: np.ndarray, layout: CodeLayout) -> np.ndarray:
    """Return S [N, groups] as the int32 words that the few-row kernel reads, block by block."""
    outputs, lanes = len(scale), layout.lanes
    columns = np.zeros((max(outputs, lanes), layout.groups), np.float32)
    columns[:outputs] = scale
    starts = np.array(vector_starts(outputs, lanes))
    vectors = columns[starts[:, None] + np.arange(lanes)].transpose(0, 2, 1)
    blocks = np.split(vectors, range(layout.block, len(starts), layout.block))
    return _words(np.concatenate([block.transpose(1, 0, 2).reshape(-1) for block in blocks]))


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Return float32 values rounded to bf16 (half to even), as uint16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _weight_runs(weight: np.ndarray, shape: Geometry) -> np.ndarray:
    """Return weights as [groups, outputs, runs, run]."""
    if weight.ndim == 4:
        weight = weight.transpose(0, 2, 3, 1)
    runs = shape.runs[0] * shape.runs[1]
    return weight.reshape(shape.groups, shape.group_outputs, runs, shape.run)


def _interleave(runs: np.ndarray, padded: int, tier: Tier, step: int) -> np.ndarray:
    """Return flat [groups, vector, runs, steps, lanes, step] of [groups, outputs, runs, run]."""
    groups, outputs, count, run = runs.shape
    lanes = tier.lanes
    whole = np.zeros((groups, max(outputs, lanes), count, padded), runs.dtype)
    whole[:, :outputs, :, :run] = runs
    starts = np.array(vector_starts(outputs, lanes))
    rows = whole[:, starts[:, None] + np.arange(lanes)]
    split = rows.reshape(groups, len(starts), lanes, count, padded // step, step)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2, 5)).reshape(-1)


_WEIGHT_DTYPES = {"int8": "int8", "weight_only": "int8", "fp32": "float32", "bf16": "uint16"}

"""The integer operators of a materialized graph, as ``torch.library`` operators.

Names carry the prefix twice (``mpq::mpq_qconv2d``) because importers that match operators by
name drop the namespace. Their eager form is the oracle of ``reference.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.quant import reference as ref
from mpq_compile.quant.attention import attention

_EPILOGUE = "int[] zero_points, float residual_scale, float[] bounds, str out"
_DTYPES = {"u8": torch.uint8, "bf16": torch.bfloat16, "fp32": torch.float32}

_library = torch.library.Library("mpq", "DEF")


def _operator(schema: str, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, function, "CPU")


def _qconv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_dilation: Sequence[int],
    zero_points: Sequence[int],
    residual_scale: float,
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    acc = ref.conv2d_accumulate(
        x, weight, zero_points[0], stride, padding, dilation, groups, input_dilation
    )
    columns = scale.view(1, -1, 1, 1), bias.view(1, -1, 1, 1)
    return ref.epilogue(acc, *columns, residual, residual_scale, zero_points, bounds, out)


def _qlinear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    zero_points: Sequence[int],
    residual_scale: float,
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    if scale.dim() == 2:
        acc = ref.grouped_linear(x, weight, scale, bias, zero_points[0])
        scale, bias = torch.ones(1), torch.zeros(1)
    else:
        acc = ref.linear_accumulate(x, weight, zero_points[0])
    return ref.epilogue(acc, scale, bias, residual, residual_scale, zero_points, bounds, out)


def _qlinear_rows(
    x: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    zero_points: Sequence[int],
    residual_scale: float,
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    v = ref.scaled_linear(x, weight, scale, zero_points[0])
    columns = row_scale.unsqueeze(-1), bias
    return ref.epilogue(v, *columns, residual, residual_scale, zero_points, bounds, out)


def _max_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    # float32 holds every u8 and bf16 value exactly, and max never rounds.
    pooled = F.max_pool2d(
        x.float(), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), ceil_mode
    )
    return pooled.to(x.dtype)


def _avg_pool2d(
    x: Tensor,
    rows: Sequence[int],
    columns: Sequence[int],
    scale: Tensor,
    zero_points: Sequence[int],
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    windows = [list(zip(spans[::2], spans[1::2], strict=True)) for spans in (rows, columns)]
    v = ref.pool_sum(x, windows, zero_points[0]).to(torch.float32) * scale
    return ref.requantize(v, bounds[0], bounds[1], zero_points[1], out)


def _lut(x: Tensor, table: Tensor) -> Tensor:
    return table[x.int()]


_operator(
    "mpq_qconv2d(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? residual, "
    "int[] stride, int[] padding, int[] dilation, int groups, int[] input_dilation, "
    f"{_EPILOGUE}) -> Tensor",
    _qconv2d,
)
_operator(
    "mpq_qlinear(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor? residual, "
    f"{_EPILOGUE}) -> Tensor",
    _qlinear,
)
_operator("mpq_quantize_rows(Tensor x) -> (Tensor, Tensor)", ref.quantize_rows)
_operator(
    "mpq_qlinear_rows(Tensor x, Tensor row_scale, Tensor weight, Tensor scale, Tensor bias, "
    f"Tensor? residual, {_EPILOGUE}) -> Tensor",
    _qlinear_rows,
)
_operator(
    "mpq_qadd(Tensor a, Tensor b, int[] zero_points, float[] scales, float[] bounds, str out)"
    " -> Tensor",
    ref.add,
)
_operator(
    "mpq_qmul(Tensor a, Tensor b, int[] zero_points, float scale, float[] bounds, str out)"
    " -> Tensor",
    ref.multiply,
)
_operator(
    "mpq_convert(Tensor x, int zero_point_in, float scale, float[] bounds, int zero_point, "
    "str out) -> Tensor",
    ref.convert,
)
_operator("mpq_lut(Tensor x, Tensor table) -> Tensor", _lut)
_operator(
    "mpq_max_pool2d(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, "
    "bool ceil_mode) -> Tensor",
    _max_pool2d,
)
_operator(
    "mpq_avg_pool2d(Tensor x, int[] rows, int[] columns, Tensor scale, int[] zero_points, "
    "float[] bounds, str out) -> Tensor",
    _avg_pool2d,
)
_operator(
    "mpq_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale, "
    "int[] zero_points, float out_scale, float[] bounds, str out) -> Tensor",
    attention,
)

_operator("mpq_embedding(Tensor ids, Tensor table, Tensor scale) -> Tensor", ref.embedding)

QCONV2D = torch.ops.mpq.mpq_qconv2d.default
QLINEAR = torch.ops.mpq.mpq_qlinear.default
QUANTIZE_ROWS = torch.ops.mpq.mpq_quantize_rows.default
QLINEAR_ROWS = torch.ops.mpq.mpq_qlinear_rows.default
QADD = torch.ops.mpq.mpq_qadd.default
QMUL = torch.ops.mpq.mpq_qmul.default
CONVERT = torch.ops.mpq.mpq_convert.default
LUT = torch.ops.mpq.mpq_lut.default
MAX_POOL2D = torch.ops.mpq.mpq_max_pool2d.default
AVG_POOL2D = torch.ops.mpq.mpq_avg_pool2d.default
ATTENTION = torch.ops.mpq.mpq_attention.default
EMBEDDING = torch.ops.mpq.mpq_embedding.default

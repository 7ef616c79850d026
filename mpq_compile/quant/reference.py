"""The numeric oracle: exact integer operators in PyTorch, and the same epilogue for float sites.

Every kernel with integer compute equals these functions bit for bit. The contract, for an
accumulator ``acc`` of output channel n::

    acc = Σ (x − x_zp) · w                      exact integers (float sites: float32)
    v   = f32(acc) ⊗ S[n] ⊕ B[n]                each operation rounded to float32, in this order
    v   = v ⊕ (f32(r − r_zp) ⊗ R)               where there is a residual
    v   = min(max(v, lo), hi)                   activation (ReLU, ReLU6, clamp) and saturation
    out = u8(round_half_even(v) + out_zp)       or v itself (fp32), or v rounded to bf16

For u8 output ``lo ≥ −out_zp`` and ``hi ≤ qmax − out_zp``: rounding is monotone, so clamping
before it equals saturating after it. Tensors are NCHW here; the layout is the kernels' affair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.quant.multipliers import ROW_PEAK, ROW_UNIT, ROW_ZERO_POINT

INT32_LIMIT = 2**31


def requantize(v: Tensor, lo: float, hi: float, zero_point: int, out: str) -> Tensor:
    """Clamp float32 ``v`` to [lo, hi] and store it as ``out`` (u8, bf16 or fp32)."""
    low, high = torch.tensor(lo, dtype=torch.float32), torch.tensor(hi, dtype=torch.float32)
    v = torch.minimum(torch.maximum(v, low), high)
    if out == "fp32":
        return v
    if out == "bf16":
        return v.to(torch.bfloat16)
    return (torch.round(v).to(torch.int32) + zero_point).to(torch.uint8)


def centered(x: Tensor, zero_point: int) -> Tensor:
    """Return float32 (x − zero_point) of a u8 tensor, or a float tensor widened to float32."""
    if x.dtype == torch.uint8:
        return (x.to(torch.int32) - zero_point).to(torch.float32)
    return x.to(torch.float32)


def epilogue(
    acc: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    residual_scale: float,
    zero_points: Sequence[int],
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    """Apply the contract's epilogue to ``acc``.

    Args:
        acc: Exact integers in float64, or float32 for float sites; any shape.
        scale: float32 S, shaped to broadcast against ``acc``.
        bias: float32 B, shaped to broadcast against ``acc``.
        residual: u8, bf16 or fp32 tensor of ``acc``'s shape, or None.
        residual_scale: R; 1.0 for a float residual of a float output.
        zero_points: Those of input, residual and output.
        bounds: (lo, hi) in units of the output.
        out: "u8", "bf16" or "fp32".
    """
    v = acc.to(torch.float32) * scale + bias
    if residual is not None:
        factor = torch.tensor(residual_scale, dtype=torch.float32)
        v = v + centered(residual, zero_points[1]) * factor
    return requantize(v, bounds[0], bounds[1], zero_points[2], out)


def stuff_and_pad(
    x: Tensor, padding: Sequence[int], input_dilation: Sequence[int], value: float
) -> Tensor:
    """Insert ``input_dilation − 1`` cells of ``value`` between pixels, then pad.

    ``padding`` is (top, left, bottom, right); negative numbers crop. A transposed convolution is
    a convolution over an input spread in this way.
    """
    step_h, step_w = input_dilation
    if (step_h, step_w) != (1, 1):
        batch, channels, height, width = x.shape
        spread = x.new_full(
            (batch, channels, (height - 1) * step_h + 1, (width - 1) * step_w + 1), value
        )
        spread[:, :, ::step_h, ::step_w] = x
        x = spread
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value)


def conv2d_accumulate(
    x: Tensor,
    weight: Tensor,
    zero_point: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_dilation: Sequence[int],
) -> Tensor:
    """Return the accumulator of a 2-D convolution, [B, N, OH, OW].

    u8 × s8 gives exact integers (in float64, where every partial sum is exact); bf16 and fp32
    give float32. ``weight`` is [N, C/groups, KH, KW].
    """
    dtype = torch.float64 if x.dtype == torch.uint8 else torch.float32
    offset = zero_point if x.dtype == torch.uint8 else 0
    cells = stuff_and_pad(x.to(dtype) - offset, padding, input_dilation, 0.0)
    return F.conv2d(
        cells, weight.to(dtype), stride=tuple(stride), dilation=tuple(dilation), groups=groups
    )


def linear_accumulate(x: Tensor, weight: Tensor, zero_point: int) -> Tensor:
    """Return the accumulator of ``x @ weight.T``; x is [..., K], weight [N, K]."""
    dtype = torch.float64 if x.dtype == torch.uint8 else torch.float32
    offset = zero_point if x.dtype == torch.uint8 else 0
    return (x.to(dtype) - offset) @ weight.to(dtype).T


def grouped_linear(
    x: Tensor, weight: Tensor, group_scale: Tensor, bias: Tensor, zero_point: int
) -> Tensor:
    """Return float32 v of a linear layer whose weights have one scale per group of inputs.

    ``group_scale`` is [N, G]; groups are added in order, each product rounded to float32 before
    it is added: v = B ⊕ f32(acc_0) ⊗ S_0 ⊕ f32(acc_1) ⊗ S_1 …
    """
    size = weight.shape[1] // group_scale.shape[1]
    v = bias.expand(*x.shape[:-1], weight.shape[0])
    for g in range(group_scale.shape[1]):
        span = slice(g * size, (g + 1) * size)
        acc = linear_accumulate(x[..., span], weight[:, span], zero_point)
        v = v + acc.to(torch.float32) * group_scale[:, g]
    return v


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row of float32 ``x`` [..., K] by its own largest magnitude.

    Returns u8 codes [..., K] with zero point ``ROW_ZERO_POINT`` and float32 scales [...], each
    operation rounded to float32 in this order::

        peak  = max(max |x|, ROW_PEAK)
        scale = peak ⊗ f32(1 / 127)
        code  = u8(round_half_even(min(max(x ⊗ (127 ⊘ peak), −127), 127)) + 128)
    """
    peak = x.abs().amax(-1).clamp_min(ROW_PEAK)
    inverse = torch.tensor(127.0, dtype=torch.float32) / peak
    scale = peak * torch.tensor(ROW_UNIT, dtype=torch.float32)
    codes = requantize(x * inverse.unsqueeze(-1), -127.0, 127.0, ROW_ZERO_POINT, "u8")
    return codes, scale


def fake_quantize_rows(x: Tensor) -> Tensor:
    """Return float32 ``x`` [..., K] as :func:`quantize_rows` rounds it."""
    codes, scale = quantize_rows(x)
    return centered(codes, ROW_ZERO_POINT) * scale.unsqueeze(-1)


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor, zero_point: int) -> Tensor:
    """Return float32 f32(acc) ⊗ S of a linear layer, or the sum of that over weight groups.

    ``scale`` is [N], or [N, G] for groups, which are added in order to 0.
    """
    if scale.dim() == 2:
        return grouped_linear(x, weight, scale, torch.zeros(len(weight)), zero_point)
    return linear_accumulate(x, weight, zero_point).to(torch.float32) * scale


def weight_only_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return float32 v of bf16 activations × integer weights, scaled per output channel."""
    return (x.to(torch.float32) @ weight.to(torch.float32).T) * scale + bias


def add(
    a: Tensor,
    b: Tensor,
    zero_points: Sequence[int],
    scales: Sequence[float],
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    """v = f32(a − za) ⊗ Ra ⊕ f32(b − zb) ⊗ Rb, then clamp and store. zero_points: a, b, out."""
    ra, rb = (torch.tensor(s, dtype=torch.float32) for s in scales)
    v = centered(a, zero_points[0]) * ra + centered(b, zero_points[1]) * rb
    return requantize(v, bounds[0], bounds[1], zero_points[2], out)


def multiply(
    a: Tensor,
    b: Tensor,
    zero_points: Sequence[int],
    scale: float,
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    """v = (f32(a − za) ⊗ f32(b − zb)) ⊗ R; u8 products are below 2**24, hence exact."""
    product = centered(a, zero_points[0]) * centered(b, zero_points[1])
    v = product * torch.tensor(scale, dtype=torch.float32)
    return requantize(v, bounds[0], bounds[1], zero_points[2], out)


def convert(
    x: Tensor, zero_point_in: int, scale: float, bounds: Sequence[float], zero_point: int, out: str
) -> Tensor:
    """Quantize, dequantize or requantize: v = f32(x − zp_in) ⊗ R, then clamp and store."""
    v = centered(x, zero_point_in) * torch.tensor(scale, dtype=torch.float32)
    return requantize(v, bounds[0], bounds[1], zero_point, out)


def windows_1d(
    size: int, kernel: int, stride: int, padding: int, dilation: int, out: int
) -> list[tuple[int, int]]:
    """Return [start, end) of each pooling window, cut to the input; step is ``dilation``."""
    spans = []
    for index in range(out):
        start = index * stride - padding
        end = min(start + (kernel - 1) * dilation + 1, size)
        while start < 0:
            start += dilation
        spans.append((start, end))
    return spans


def adaptive_windows_1d(size: int, out: int) -> list[tuple[int, int]]:
    """Return [start, end) of each adaptive pooling window (PyTorch's rule)."""
    return [((i * size) // out, -((-(i + 1) * size) // out)) for i in range(out)]


def pool_sum(x: Tensor, windows: Sequence[Sequence[tuple[int, int]]], zero_point: int) -> Tensor:
    """Return exact Σ (x − zp) over each window, [B, C, OH, OW], float64 for u8 input.

    ``windows`` holds the spans of rows and of columns. Float input is summed in float32.
    """
    dtype = torch.float64 if x.dtype == torch.uint8 else torch.float32
    cells = x.to(dtype) - (zero_point if x.dtype == torch.uint8 else 0)
    rows = torch.stack([cells[:, :, a:b].sum(2) for a, b in windows[0]], 2)
    return torch.stack([rows[:, :, :, a:b].sum(3) for a, b in windows[1]], 3)


def avg_pool(
    x: Tensor,
    windows: Sequence[Sequence[tuple[int, int]]],
    scale: Tensor,
    zero_point_in: int,
    bounds: Sequence[float],
    zero_point: int,
    out: str,
) -> Tensor:
    """v = f32(Σ (x − zp_in)) ⊗ S[oh, ow], then clamp and store; also any mean over H and W.

    Args:
        x: u8, bf16 or fp32, [B, C, H, W].
        windows: Spans of rows and of columns; see ``windows_1d``, ``adaptive_windows_1d``.
        scale: float32 S, [OH, OW]: input scale / (output scale · cells of the window).
        zero_point_in: That of a u8 input.
        bounds: (lo, hi) in units of the output.
        zero_point: That of a u8 output.
        out: "u8", "bf16" or "fp32".
    """
    v = pool_sum(x, windows, zero_point_in).to(torch.float32) * scale
    return requantize(v, bounds[0], bounds[1], zero_point, out)


def max_pool(
    x: Tensor, windows: Sequence[Sequence[tuple[int, int]]], step: Sequence[int]
) -> Tensor:
    """Return the greatest cell of each window, [B, C, OH, OW], in the form of ``x``.

    ``windows`` holds the spans of rows and of columns, of which every ``step``-th cell counts
    (the dilation). Scale and zero point stay those of the input.
    """
    rows = torch.stack([x[:, :, a : b : step[0]].amax(2) for a, b in windows[0]], 2)
    return torch.stack([rows[:, :, :, a : b : step[1]].amax(3) for a, b in windows[1]], 3)


def lut(x: Tensor, table: Tensor) -> Tensor:
    """Return table[x] of a u8 tensor; ``table`` is u8[256]: any unary function of a code."""
    return table[x.to(torch.int64)]


def embedding(ids: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """Return the rows of a table, float32 [..., width]: code ⊗ scale of the row or its group.

    Args:
        ids: int64 or int32, any shape; each below the number of rows.
        table: [rows, width]: int8 codes, bf16 or fp32.
        scale: float32 [rows], or [rows, groups]; ones for float tables.
    """
    values, scales = table[ids].to(torch.float32), scale[ids]
    groups = scales.shape[-1] if scale.dim() == 2 else 1
    grouped = values.reshape(*ids.shape, groups, -1) * scales.reshape(*ids.shape, groups, 1)
    return grouped.reshape(values.shape)

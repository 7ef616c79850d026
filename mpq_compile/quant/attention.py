"""The oracle of scaled dot product attention, exact integers for u8 operands.

With codes q, k, v and S = scale of q · scale of k · scale of the scores::

    acc = Σ_d (q − q_zp) · (k − 128)               exact; see below for the zero point of k
    s   = f32(acc) ⊗ S ⊕ mask                      each operation rounded to float32, in this order
    z   = (s ⊖ max_j s) ⊗ log2(e)
    p   = round_half_even(255 · 2**z)              u8, by the polynomial of ``exponential.CODES``
    out = f32(Σ_j p · (v − v_zp)) ⊗ (R ⊘ f32(Σ_j p))   then clamp, round and store

The zero point of k adds the same number to all scores of a row, which softmax cancels. Division
by the sum of the codes makes the weights sum to one. Rows that are masked entirely give zeros, as
in PyTorch. bf16 and fp32 operands take float32 sums; for bf16 the weights p are rounded to bf16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mpq_compile.quant.exponential import CODES, LOG2_E, LOWEST_CODE
from mpq_compile.quant.reference import requantize

_LOWEST = torch.finfo(torch.float32).min


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float,
    zero_points: Sequence[int],
    out_scale: float,
    bounds: Sequence[float],
    out: str,
) -> Tensor:
    """Return softmax(q · kᵀ · scale + mask) · v, stored as ``out``.

    Args:
        q: u8, bf16 or fp32, [..., Tq, D].
        k, v: In the format of q; [..., Tk, D] and [..., Tk, Dv].
        mask: float32, broadcastable to [..., Tq, Tk]; added to the scores.
        causal: Row i attends to keys 0 … i only.
        scale: S, float32; of the scores alone for float operands.
        zero_points: Those of q, v and the output.
        out_scale: R, float32: scale of v / scale of the output.
        bounds: (lo, hi) in units of the output.
        out: "u8", "bf16" or "fp32".
    """
    integer = q.dtype == torch.uint8
    scores = _scores(q, k, zero_points[0]) * _f32(scale)
    if mask is not None:
        scores = scores + mask
    if causal:
        rows, keys = scores.shape[-2:]
        scores = scores.masked_fill(~torch.ones(rows, keys, dtype=torch.bool).tril(), float("-inf"))
    highest = scores.amax(-1, keepdim=True).clamp_min(_LOWEST)
    z = (scores - highest) * _f32(LOG2_E)
    weights = exp2_codes(z) if integer else _rounded(torch.exp2(z), q.dtype)
    total = weights.sum(-1, keepdim=True).to(torch.float32).clamp_min(1.0)
    values = v.double() - zero_points[1] if integer else v.to(torch.float32)
    acc = weights.to(values.dtype) @ values
    v_out = acc.to(torch.float32) * (_f32(out_scale) / total)
    return requantize(v_out, bounds[0], bounds[1], zero_points[2], out)


def exp2_codes(z: Tensor) -> Tensor:
    """Return round_half_even(255 · 2**z) of float32 z ≤ 0 (−inf included), exact in float64.

    z = n + f with n = round_half_even(z); 2**f is a polynomial in Horner's form, every product
    and sum rounded to float32; the multiplication by 2**n is exact.
    """
    z = z.clamp_min(LOWEST_CODE)
    n = torch.round(z)
    f = z - n
    value = torch.full_like(f, CODES[0])
    for coefficient in CODES[1:]:
        value = value * f + _f32(coefficient)
    power = torch.bitwise_left_shift(n.to(torch.int32) + 127, 23).view(torch.float32)
    return torch.round(value * power).to(torch.float64)


def _scores(q: Tensor, k: Tensor, zero_point: int) -> Tensor:
    if q.dtype != torch.uint8:
        return q.to(torch.float32) @ k.to(torch.float32).mT
    return ((q.double() - zero_point) @ (k.double() - 128).mT).to(torch.float32)


def _rounded(weights: Tensor, dtype: torch.dtype) -> Tensor:
    return weights.to(dtype).to(torch.float32)


def _f32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)

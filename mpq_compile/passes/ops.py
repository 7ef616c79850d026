"""Float operators of the prepared graph: a site with its epilogue, clamp, affine, add, multiply.

They are plain functions of PyTorch, so autograd and any device work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.quant.reference import stuff_and_pad

INF = float("inf")


def clamp(x: Tensor, lo: float, hi: float) -> Tensor:
    """ReLU (0, inf), ReLU6 (0, 6), hardtanh and clamp in one form."""
    if (lo, hi) == (-INF, INF):
        return x
    return F.relu(x) if (lo, hi) == (0.0, INF) else torch.clamp(x, lo, hi)


def _finish(v: Tensor, residual: Tensor | None, lo: float, hi: float) -> Tensor:
    return clamp(v if residual is None else v + residual, lo, hi)


def site_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    input_dilation: Sequence[int],
    lo: float = -INF,
    hi: float = INF,
) -> Tensor:
    """Convolution (a transposed one by ``input_dilation``) + residual, then clamp.

    ``padding`` is (top, left, bottom, right), negative to crop; ``weight`` is [N, C/groups, ...].
    """
    top, left, bottom, right = padding
    spread = tuple(input_dilation) != (1, 1)
    if not spread and top == bottom >= 0 and left == right >= 0:
        pads: tuple[int, int] = (top, left)
    else:
        x, pads = stuff_and_pad(x, padding, input_dilation, 0.0), (0, 0)
    v = F.conv2d(x, weight, bias, tuple(stride), pads, tuple(dilation), groups)
    return _finish(v, residual, lo, hi)


def site_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    lo: float = -INF,
    hi: float = INF,
) -> Tensor:
    """``x @ weight.T + bias`` + residual, then clamp."""
    return _finish(F.linear(x, weight, bias), residual, lo, hi)


def site_embedding(x: Tensor, weight: Tensor, bias: None = None, residual: None = None) -> Tensor:
    """Rows of ``weight`` by number. Every site's first arguments are input, weight, bias and
    residual; a lookup has neither of the last two."""
    return F.embedding(x, weight)


def channel_affine(
    x: Tensor, scale: Tensor, bias: Tensor, lo: float = -INF, hi: float = INF
) -> Tensor:
    """``x · scale[c] + bias[c]`` over dimension 1, then clamp: a batch norm that stands alone."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    return clamp(x * scale.view(shape) + bias.view(shape), lo, hi)


def add(a: Tensor, b: Tensor, lo: float = -INF, hi: float = INF) -> Tensor:
    """``a + b``, then clamp."""
    return clamp(a + b, lo, hi)


def subtract(a: Tensor, b: Tensor, lo: float = -INF, hi: float = INF) -> Tensor:
    """``a − b``, then clamp."""
    return clamp(a - b, lo, hi)


def multiply(a: Tensor, b: Tensor, lo: float = -INF, hi: float = INF) -> Tensor:
    """``a · b``, then clamp."""
    return clamp(a * b, lo, hi)


def write_rows(cache: Tensor, rows: Tensor, position: Tensor, axis: int) -> Tensor:
    """Return ``cache`` with ``rows`` at ``position`` along ``axis``: a step of a KV cache.

    Args:
        cache: [..., S, ...], S along ``axis``.
        rows: The same shape with T instead of S.
        position: int64 [T], each in [0, S).
    """
    return cache.index_copy(axis, position, rows)


def frames_beside(
    x: Tensor,
    time: int,
    taps: int,
    stride: int,
    dilation: int,
    before: int,
    behind: int,
    groups: int = 1,
    fill: float = 0,
) -> Tensor:
    """Return the frames that a convolution over time reads, side by side as channels.

    Args:
        x: [B · time, C, H, W].
        taps: Frames of one result, ``dilation`` apart; the taps of a group of channels lie
            together.
        stride: Frames between two results.
        before, behind: Frames of ``fill`` at the ends; negative ones are cut off.

    Returns:
        [B · frames, taps · C, H, W].
    """
    steps = F.pad(x.reshape(-1, time, *x.shape[1:]), (*(0,) * 6, before, behind), value=fill)
    frames = (time + before + behind - dilation * (taps - 1) - 1) // stride + 1
    last = stride * (frames - 1) + 1
    starts = range(0, dilation * taps, dilation)
    parts = [steps[:, at : at + last : stride].unflatten(2, (groups, -1)) for at in starts]
    return torch.stack(parts, 3).flatten(2, 4).flatten(0, 1)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return ``x · cos + rotate_half(x) · sin``: a rotary position embedding.

    Args:
        x: [B, H, T, D], D even; its halves are the two coordinates that rotate.
        cos, sin: Broadcastable to x.
    """
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def lstm_step(inner: Tensor, outer: Tensor | None, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return h = σ(o) · tanh(c) and c = σ(f) · c + σ(i) · tanh(g): a step of an LSTM.

    Args:
        inner: [B, 4·H], products of the input: i, f, g and o as in ``nn.LSTM``.
        outer: [B, 4·H], products of the hidden state, which are added; None for zeros.
        cell: [B, H], the cell state before; None for zeros.

    Returns:
        Hidden state and cell state after the step, [B, H] each.
    """
    i, f, g, o = (inner if outer is None else inner + outer).chunk(4, -1)
    new = torch.sigmoid(i) * torch.tanh(g)
    cell = new if cell is None else torch.sigmoid(f) * cell + new
    return torch.sigmoid(o) * torch.tanh(cell), cell


def gru_step(inner: Tensor, outer: Tensor | None, hidden: Tensor | None) -> Tensor:
    """Return ``(1 − z) · n + z · h``, the hidden state of a GRU after a step.

    r = σ(r_x + r_h), z = σ(z_x + z_h) and n = tanh(n_x + r · n_h).

    Args:
        inner: [B, 3·H], products of the input: r, z and n as in ``nn.GRU``.
        outer: [B, 3·H] or [3·H], products of the hidden state; None for zeros.
        hidden: [B, H], the hidden state before; None for zeros.
    """
    r, z, n = inner.chunk(3, -1)
    if outer is not None:
        r_h, z_h, n_h = outer.chunk(3, -1)
        r, z = r + r_h, z + z_h
        n = n + torch.sigmoid(r) * n_h
    z, n = torch.sigmoid(z), torch.tanh(n)
    return n - z * n if hidden is None else n + z * (hidden - n)


# Sites that multiply, and all sites.
SITE_OPS = (site_conv2d, site_linear)
ALL_SITE_OPS = (*SITE_OPS, site_embedding)
# Operators whose last two arguments are the bounds of a clamp.
CLAMPED = (site_conv2d, site_linear, channel_affine, add, subtract, multiply)

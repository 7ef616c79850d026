"""Windows that slide: their sizes, and the padding that ONNX leaves to be computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.program import Node


@dataclass(frozen=True, kw_only=True)
class Window:
    """Geometry of a convolution or pooling, one number a spatial dimension.

    ``before`` and ``after`` are the padding; ``symmetric`` tells that they agree.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        """True where both sides are padded alike."""
        return self.before == self.after


def window_of(node: Node, x: Tensor, kernel: tuple[int, ...]) -> Window:
    """Return the geometry that a node's attributes give for an input [N, C, …]."""
    rank = len(kernel)
    stride = tuple(node.get("strides", [1] * rank))
    dilation = tuple(node.get("dilations", [1] * rank))
    pads = node.get("pads", [0] * (2 * rank))
    before, after = tuple(pads[:rank]), tuple(pads[rank:])
    mode = node.get("auto_pad", "NOTSET")
    if mode == "VALID":
        before = after = (0,) * rank
    elif mode.startswith("SAME"):
        amounts = [
            max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
            for size, s, d, k in zip(x.shape[2:], stride, dilation, kernel, strict=True)
        ]
        before, after = shared_out(amounts, mode)
    return Window(kernel=kernel, stride=stride, dilation=dilation, before=before, after=after)


def shared_out(amounts: list[int], mode: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return padding before and after: what is odd goes to the end, or to the start (LOWER)."""
    small = tuple(amount // 2 for amount in amounts)
    large = tuple(amount - amount // 2 for amount in amounts)
    return (large, small) if mode == "SAME_LOWER" else (small, large)


def padded(x: Tensor, before: tuple[int, ...], after: tuple[int, ...], value: float = 0) -> Tensor:
    """Pad the last dimensions of ``x``; negative amounts crop."""
    if not any(before) and not any(after):
        return x
    pairs = [pair for pair in zip(before, after, strict=True)]
    return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=value)

"""Convolutions, one to three spatial dimensions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.operators.padding import padded, shared_out, window_of
from mpq_compile.onnx_import.program import Node

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, …], weight [M, C/group, …]."""
    rank = _rank(node, weight)
    window = window_of(node, x, tuple(weight.shape[2:]))
    padding = window.before
    if not window.symmetric:
        x, padding = padded(x, window.before, window.after), (0,) * rank
    return _CONVOLUTIONS[rank](
        x, weight, bias, window.stride, padding, window.dilation, node.get("group", 1)
    )


def transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, …], weight [C, M/group, …].

    ONNX gives the output's size, or its padding; PyTorch adds zeros at its end and crops both
    sides alike. What is cropped unequally is cropped afterwards.
    """
    rank = _rank(node, weight)
    window = window_of(node, x, tuple(weight.shape[2:]))
    extra = tuple(node.get("output_padding", [0] * rank))
    before, after = window.before, window.after
    whole = [
        (size - 1) * s + d * (k - 1) + 1 + e
        for size, s, d, k, e in zip(
            x.shape[2:], window.stride, window.dilation, window.kernel, extra, strict=True
        )
    ]
    mode = node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape")
    if wanted is None and mode.startswith("SAME"):
        wanted = [size * s for size, s in zip(x.shape[2:], window.stride, strict=True)]
    if wanted is not None:
        amounts = [size - want for size, want in zip(whole, wanted[-rank:], strict=True)]
        before, after = shared_out(amounts, "SAME_UPPER" if mode == "SAME_UPPER" else "SAME_LOWER")
    settings = (node.get("group", 1), window.dilation)
    function = _TRANSPOSED[rank]
    if (
        before == after
        and min(before) >= 0
        and all(e < s for e, s in zip(extra, window.stride, strict=True))
    ):
        return function(x, weight, bias, window.stride, before, extra, *settings)
    y = function(x, weight, bias, window.stride, 0, 0, *settings)
    crop = tuple(e - a for e, a in zip(extra, after, strict=True))
    return padded(y, tuple(-b for b in before), crop)


def _rank(node: Node, weight: Tensor) -> int:
    rank = weight.dim() - 2
    if rank not in _CONVOLUTIONS:
        raise node.unsupported(f"a weight of shape {list(weight.shape)}")
    return rank


CONVOLUTIONS = {
    "Conv": Operator(function=convolution),
    "ConvTranspose": Operator(function=transposed),
}

"""Windows of a tensor, as patches are cut and sewn: moves, which keep codes as they are.

Windows that lie beside each other are a reshape and a turn; those that overlap are slices side by
side, one for each place in a window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mpq_compile.passes.base import call, replace, sizes_of

aten = torch.ops.aten


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values


def _unfold(module: fx.GraphModule, node: fx.Node) -> None:
    """``x.unfold(dim, size, step)``: the windows' values come last."""
    x: Any = node.args[0]
    axis, size, step = (int(number) for number in node.args[1:4])
    shape = sizes_of(x)
    if shape is None or not isinstance(shape[axis], int):
        return
    axis %= len(shape)
    count = (shape[axis] - size) // step + 1
    if step == size:
        x = _span(module, node, x, axis, 0, count * size, 1)
        sizes = [n if isinstance(n, int) else -1 for n in shape]
        if sizes.count(-1) > 1:
            return
        sizes[axis : axis + 1] = [count, size]
        windows = call(module, node, aten.reshape.default, x, sizes)
    elif size <= count:
        last = step * (count - 1) + 1
        parts = [_span(module, node, x, axis, at, at + last, step) for at in range(size)]
        windows = _stacked(module, node, parts, axis + 1)
    else:
        starts = range(0, step * count, step)
        parts = [_span(module, node, x, axis, at, at + size, 1) for at in starts]
        windows = _stacked(module, node, parts, axis)
    order = [n for n in range(len(shape) + 1) if n != axis + 1]
    replace(module, node, aten.permute.default, (windows, [*order, axis + 1]))


def _span(
    module: fx.GraphModule, node: fx.Node, x: fx.Node, axis: int, start: int, end: int, step: int
) -> fx.Node:
    return call(module, node, aten.slice.Tensor, x, axis, start, end, step)


def _stacked(module: fx.GraphModule, node: fx.Node, parts: list[fx.Node], axis: int) -> fx.Node:
    apart = [call(module, node, aten.unsqueeze.default, part, axis) for part in parts]
    return apart[0] if len(apart) == 1 else call(module, node, aten.cat.default, apart, axis)


def _im2col(module: fx.GraphModule, node: fx.Node) -> None:
    """[B, C, H, W] → [B, C·KH·KW, windows]."""
    x: Any = node.args[0]
    shape = sizes_of(x)
    if shape is None or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
        return
    kernel, dilation, padding, stride = (_pair(value) for value in node.args[1:5])
    _, channels, *sizes = shape
    if any(padding):
        (top, left), zero = padding, 0
        x = call(module, node, aten.constant_pad_nd.default, x, [left, left, top, top], zero)
        sizes = [size + 2 * pad for size, pad in zip(sizes, padding, strict=True)]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    rows, columns = ((n - r) // s + 1 for n, r, s in zip(sizes, reach, stride, strict=True))
    merged = [-1, channels * kernel[0] * kernel[1], rows * columns]
    if kernel == stride and dilation == [1, 1]:
        x = _span(module, node, x, 2, 0, rows * kernel[0], 1)
        x = _span(module, node, x, 3, 0, columns * kernel[1], 1)
        split = [-1, channels, rows, kernel[0], columns, kernel[1]]
        parts = call(module, node, aten.reshape.default, x, split)
        x = call(module, node, aten.permute.default, parts, [0, 1, 3, 5, 2, 4])
    else:
        places = []
        for at in range(0, dilation[0] * kernel[0], dilation[0]):
            line = _span(module, node, x, 2, at, at + stride[0] * (rows - 1) + 1, stride[0])
            for to in range(0, dilation[1] * kernel[1], dilation[1]):
                end = to + stride[1] * (columns - 1) + 1
                places.append(_span(module, node, line, 3, to, end, stride[1]))
        x = _stacked(module, node, places, 2)
    replace(module, node, aten.reshape.default, (x, merged))


def _col2im(module: fx.GraphModule, node: fx.Node) -> None:
    """[B, C·KH·KW, windows] → [B, C, H, W], of windows beside each other."""
    x = node.args[0]
    shape = sizes_of(x)
    size, kernel, dilation, padding, stride = (_pair(value) for value in node.args[1:6])
    apart = kernel == stride and dilation == [1, 1] and not any(padding)
    if shape is None or len(shape) != 3 or not apart or not isinstance(shape[1], int):
        return
    if any(n % k for n, k in zip(size, kernel, strict=True)):
        return
    rows, columns = (n // k for n, k in zip(size, kernel, strict=True))
    channels = shape[1] // (kernel[0] * kernel[1])
    split = [-1, channels, *kernel, rows, columns]
    parts = call(module, node, aten.reshape.default, x, split)
    turned = call(module, node, aten.permute.default, parts, [0, 1, 4, 2, 5, 3])
    replace(module, node, aten.reshape.default, (turned, [-1, channels, *size]))


RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    aten.unfold.default: _unfold,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
}

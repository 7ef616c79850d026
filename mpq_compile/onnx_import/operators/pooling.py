"""Pooling over windows, and over all of space."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.operators.padding import Window, padded, window_of
from mpq_compile.onnx_import.program import Node

_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_SUMS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def max_pool(node: Node, x: Tensor) -> Tensor | tuple[Tensor, ...]:
    """The second output, where it is read, holds positions in the whole tensor."""
    window = window_of(node, x, _kernel(node))
    positions = len(node.outputs) > 1 and node.outputs[1] != ""
    before, after = window.before, _to_ceiling(node, x, window)
    # PyTorch pads by at most half a window, alike on both sides.
    plain = window.symmetric and all(2 * b <= k for b, k in zip(before, window.kernel, strict=True))
    function = _MAXIMA[len(window.kernel)]
    if plain and not positions:
        ceil = bool(node.get("ceil_mode", 0))
        return function(x, window.kernel, window.stride, before, window.dilation, ceil)
    low = torch.iinfo(x.dtype).min if not x.is_floating_point() else -float("inf")
    wide = padded(x, before, after, low)
    if not positions:
        return function(wide, window.kernel, window.stride, 0, window.dilation)
    y, index = function(wide, window.kernel, window.stride, 0, window.dilation, False, True)
    return y, _flat_positions(node, index, x, wide, window)


def _flat_positions(node: Node, index: Tensor, x: Tensor, wide: Tensor, window: Window) -> Tensor:
    """Positions in a padded plane → positions in all of ``x`` [N, C, …]."""
    sizes = wide.shape[2:]
    places: list[Tensor] = []
    for size in reversed(sizes):
        places.insert(0, index % size)
        index = index // size
    places = [place - b for place, b in zip(places, window.before, strict=True)]
    inner = list(x.shape[2:])
    if node.get("storage_order", 0):
        places, inner = places[::-1], inner[::-1]
    flat = torch.zeros_like(places[0])
    for place, size in zip(places, inner, strict=True):
        flat = flat * size + place
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2] + (1,) * len(inner))
    return planes * x[0, 0].numel() + flat


def average_pool(node: Node, x: Tensor) -> Tensor:
    window = window_of(node, x, _kernel(node))
    count_padding, ceil = bool(node.get("count_include_pad", 0)), bool(node.get("ceil_mode", 0))
    plain = (
        window.symmetric
        and set(window.dilation) == {1}
        and all(2 * b <= k for b, k in zip(window.before, window.kernel, strict=True))
    )
    if plain:
        function = _MEANS[len(window.kernel)]
        return function(x, window.kernel, window.stride, window.before, ceil, count_padding)
    return _mean_of_windows(node, x, window, count_padding)


def _mean_of_windows(node: Node, x: Tensor, window: Window, count_padding: bool) -> Tensor:
    """Sum of each window over the number of its cells that count."""
    after = _to_ceiling(node, x, window)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    if count_padding:
        counted = padded(ones, window.before, window.after, 1)
        rest = tuple(a - b for a, b in zip(after, window.after, strict=True))
        counted = padded(counted, (0,) * len(rest), rest)
    else:
        counted = padded(ones, window.before, after)
    kernel = torch.ones(1, 1, *window.kernel, dtype=x.dtype)
    add = _SUMS[len(window.kernel)]
    planes = padded(x, window.before, after).flatten(0, 1).unsqueeze(1)
    sums = add(planes, kernel, None, window.stride, 0, window.dilation)
    counts = add(counted, kernel, None, window.stride, 0, window.dilation)
    return (sums / counts).reshape(x.shape[:2] + sums.shape[2:])


def _to_ceiling(node: Node, x: Tensor, window: Window) -> tuple[int, ...]:
    """Return the padding at the end with what makes a started window whole (``ceil_mode``)."""
    if not node.get("ceil_mode", 0):
        return window.after
    after = []
    for i, size in enumerate(x.shape[2:]):
        stride, reach = window.stride[i], window.dilation[i] * (window.kernel[i] - 1) + 1
        total = size + window.before[i] + window.after[i]
        steps = -(-(total - reach) // stride)
        if steps * stride >= size + window.before[i]:
            steps -= 1  # a window that starts in the padding at the end does not count
        after.append(window.after[i] + max(0, steps * stride + reach - total))
    return tuple(after)


def _kernel(node: Node) -> tuple[int, ...]:
    kernel = tuple(node.get("kernel_shape"))
    if len(kernel) not in _MEANS:
        raise node.unsupported(f"a window of {len(kernel)} dimensions")
    return kernel


def global_average_pool(node: Node, x: Tensor) -> Tensor:
    if x.dim() == 4:
        return F.adaptive_avg_pool2d(x, 1)
    return x.mean(list(range(2, x.dim())), keepdim=True)


def global_max_pool(node: Node, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


POOLING = {
    "MaxPool": Operator(function=max_pool),
    "AveragePool": Operator(function=average_pool),
    "GlobalAveragePool": Operator(function=global_average_pool),
    "GlobalMaxPool": Operator(function=global_max_pool),
}

"""Geometry of average pooling: windows and divisors of every variant in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from mpq_compile.quant.reference import adaptive_windows_1d, windows_1d

aten = torch.ops.aten
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class PoolWindows:
    """Spans [start, end) of rows and columns, and the divisor of each output, [OH, OW]."""

    rows: list[Span]
    columns: list[Span]
    divisors: np.ndarray

    @property
    def flat_rows(self) -> list[int]:
        """Starts and ends of the rows, interleaved."""
        return [value for span in self.rows for value in span]

    @property
    def flat_columns(self) -> list[int]:
        """Starts and ends of the columns, interleaved."""
        return [value for span in self.columns for value in span]


def pool_windows(node: fx.Node, input_shape: tuple[int, ...]) -> PoolWindows:
    """Return the windows of avg_pool2d, adaptive_avg_pool2d or mean over (H, W)."""
    height, width = input_shape[2:]
    if node.target is aten.mean.dim:
        return _counted([(0, height)], [(0, width)])
    if node.target is aten.adaptive_avg_pool2d.default:
        sizes = _pair(node.args[1])
        out = [s if o is None else o for o, s in zip(sizes, (height, width), strict=True)]
        return _counted(adaptive_windows_1d(height, out[0]), adaptive_windows_1d(width, out[1]))
    return _average(node, height, width)


def _counted(rows: list[Span], columns: list[Span]) -> PoolWindows:
    heights = np.array([b - a for a, b in rows])
    widths = np.array([b - a for a, b in columns])
    return PoolWindows(rows=rows, columns=columns, divisors=np.outer(heights, widths))


def _average(node: fx.Node, height: int, width: int) -> PoolWindows:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
    values = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    kernel = _pair(values["kernel_size"])
    stride = _pair(values.get("stride") or kernel)
    padding = _pair(values.get("padding", 0))
    ceil_mode, include = values.get("ceil_mode", False), values.get("count_include_pad", True)
    spans: list[list[Span]] = []
    counts: list[list[int]] = []
    for size, k, s, p in zip((height, width), kernel, stride, padding, strict=True):
        out = pooled_size(size, k, s, p, 1, bool(ceil_mode))
        span = windows_1d(size, k, s, p, 1, out)
        spans.append(span)
        # Padding counts as cells, cells beyond it (ceil_mode) do not.
        padded = [min(i * s - p + k, size + p) - (i * s - p) for i in range(out)]
        counts.append(padded if include else [b - a for a, b in span])
    override = node.args[6] if len(node.args) > 6 else node.kwargs.get("divisor_override")
    divisors = np.outer(counts[0], counts[1])
    if override is not None:
        divisors = np.full(divisors.shape, override)
    return PoolWindows(rows=spans[0], columns=spans[1], divisors=divisors)


def pooled_size(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> int:
    """Return the output size of a pooling window (PyTorch's rule for ``ceil_mode``)."""
    free = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (free + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (out - 1) * stride >= size + padding:
        out -= 1
    return out


def _pair(value: Any) -> tuple[Any, Any]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])

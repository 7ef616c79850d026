"""Pooling and resizing of volumes: over space, then over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes.base import argument
from mpq_compile.passes.lifting import Twin
from mpq_compile.passes.volume_lift import VolumeLift, three

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class _Window:
    """A window of a pooling along one or two axes."""

    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    rest: tuple[Any, ...]

    @property
    def trivial(self) -> bool:
        """Tell whether it is a single value, at every place."""
        return set(self.kernel) == set(self.stride) == {1} and not any(self.padding)

    def over_time(self) -> _Window:
        """Return what it is on lines: the same along time, one value along the other axis."""
        return _Window(
            kernel=[self.kernel[0], 1],
            stride=[self.stride[0], 1],
            padding=[self.padding[0], 0],
            dilation=[self.dilation[0], 1],
            rest=self.rest,
        )

    def over_space(self) -> _Window:
        """Return what it is on frames."""
        return _Window(
            kernel=self.kernel[1:],
            stride=self.stride[1:],
            padding=self.padding[1:],
            dilation=self.dilation[1:],
            rest=self.rest,
        )

    def maximum(self, lift: VolumeLift, image: fx.Node) -> fx.Node:
        """Emit the greatest value of each window."""
        args = (self.kernel, self.stride, self.padding, self.dilation, *self.rest)
        return lift.emit(aten.max_pool2d.default, image, *args)

    def average(self, lift: VolumeLift, image: fx.Node) -> fx.Node:
        """Emit the mean of each window."""
        args = (self.kernel, self.stride, self.padding, *self.rest)
        return lift.emit(aten.avg_pool2d.default, image, *args)


def _pooled(lift: VolumeLift, node: fx.Node, window: _Window, pool: Any) -> Twin | None:
    before, after = lift.size(node.args[0]), lift.size(node)
    if before is None or after is None:
        return None
    frames = lift.twin(node.args[0])
    if not window.over_space().trivial:
        frames = pool(window.over_space(), lift, frames)
    channels, time, height, width = after
    if not window.over_time().trivial:
        lines = lift.lines(frames, (channels, before[1], height, width))
        frames = lift.frames_of_lines(pool(window.over_time(), lift, lines), after)
    return aten.reshape.default, (frames, [-1, channels, height, width])


def _window(node: fx.Node, dilation: Any, rest: tuple[Any, ...]) -> _Window:
    kernel = three(node.args[1])
    return _Window(
        kernel=kernel,
        stride=three(argument(node, 2, "stride", ()) or kernel),
        padding=three(argument(node, 3, "padding", 0)),
        dilation=three(dilation),
        rest=rest,
    )


def max_pool(lift: VolumeLift, node: fx.Node) -> Twin | None:
    dilation = argument(node, 4, "dilation", 1)
    window = _window(node, dilation, (argument(node, 5, "ceil_mode", False),))
    return _pooled(lift, node, window, _Window.maximum)


def average_pool(lift: VolumeLift, node: fx.Node) -> Twin | None:
    if argument(node, 6, "divisor_override") is not None:
        return None
    rest = (argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True))
    window, sizes = _window(node, 1, rest), lift.size(node.args[0])
    if sizes is not None and tuple(window.kernel) == sizes[1:] and not any(window.padding):
        return _overall(lift, node, sizes)
    return _pooled(lift, node, window, _Window.average)


def _overall(lift: VolumeLift, node: fx.Node, sizes: Sequence[int]) -> Twin:
    """The mean over all of time and space."""
    lines = lift.lines(lift.twin(node.args[0]), sizes)
    return aten.adaptive_avg_pool2d.default, (lines, [1, 1])


def adaptive_pool(lift: VolumeLift, node: fx.Node) -> Twin | None:
    before, after = lift.size(node.args[0]), lift.size(node)
    if before is None or after is None:
        return None
    channels, time, height, width = after
    if after[1:] == (1, 1, 1):
        return _overall(lift, node, before)
    frames = lift.twin(node.args[0])
    if (height, width) != before[2:]:
        frames = lift.emit(aten.adaptive_avg_pool2d.default, frames, [height, width])
    if time != before[1]:
        lines = lift.lines(frames, (channels, before[1], height, width))
        pooled = lift.emit(aten.adaptive_avg_pool2d.default, lines, [time, height * width])
        frames = lift.frames_of_lines(pooled, after)
    return aten.reshape.default, (frames, [-1, channels, height, width])


def _resized(lift: VolumeLift, node: fx.Node, target: Any, options: int) -> Twin | None:
    """Resize; ``options`` arguments stand between the size and the factors."""
    before, after = lift.size(node.args[0]), lift.size(node)
    if before is None or after is None:
        return None
    rest = [argument(node, at, "align_corners") for at in range(2, 2 + options)]
    factors: Any = argument(node, 2 + options, "scale_factors")
    channels, time, height, width = after
    frames = lift.twin(node.args[0])
    # A factor may move values and leave the size as it is.
    same = [factor == 1.0 for factor in factors] if factors else [True] * 3
    kept = [(height, width) == before[2:] and not all(same[1:]), time == before[1] and not same[0]]
    if any(kept) and target is aten.upsample_nearest2d.vec:
        return None  # an image of the same size is copied, a volume goes by its factor
    if (height, width) != before[2:] or not all(same[1:]):
        size, factor = (None, factors[1:]) if factors else ([height, width], None)
        frames = lift.emit(target, frames, size, *rest, factor)
    if time != before[1] or not same[0]:
        lines = lift.lines(frames, (channels, before[1], height, width))
        size, factor = (None, [factors[0], 1.0]) if factors else ([time, height * width], None)
        frames = lift.frames_of_lines(lift.emit(target, lines, size, *rest, factor), after)
    return aten.reshape.default, (frames, [-1, channels, height, width])


def nearest(lift: VolumeLift, node: fx.Node) -> Twin | None:
    return _resized(lift, node, aten.upsample_nearest2d.vec, 0)


def trilinear(lift: VolumeLift, node: fx.Node) -> Twin | None:
    return _resized(lift, node, aten.upsample_bilinear2d.vec, 1)

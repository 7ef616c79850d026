"""Volumes [B, C, T, H, W] become frames [B·T, C, H, W]: 3-D layers are 2-D ones over frames.

A convolution that reads several frames reads them side by side, as channels: its weight
[N, C/g, KT, KH, KW] is [N, KT·C/g, KH, KW], and what is added up is the same. Pooling over time is
pooling over lines, images [B, C, T, H·W]. So 3-D layers are sites with the same kernels, oracle and
rules as an image's, and what lies between two of them (activations, norms, sums, concatenation,
padding, slices) works on frames as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import add_constant, argument, call, constant
from mpq_compile.passes.lifting import Lifting, Rules, Twin

aten = torch.ops.aten
_TIME = 2  # the axis that joins the batch


@dataclass(frozen=True, kw_only=True)
class LiftVolumes:
    """Lift each 3-D layer, and what can be lifted of what reads it."""

    name: str = "lift_volumes"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        _Lift(module, _LAYERS, _FOLLOWERS).run()
        return module


class _Lift(Lifting):
    """A volume's twin are its frames."""

    rank = 5

    def emit(self, target: Any, *args: Any) -> fx.Node:
        """Emit a call where the rewrite is."""
        return call(self.module, self.here, target, *args)

    def size(self, node: Any) -> tuple[int, int, int, int] | None:
        """Return C, T, H and W of a volume; None where one is free."""
        value = self.value(node)
        sizes = list(value.shape[1:]) if isinstance(value, Tensor) else []
        known = len(sizes) == 4 and all(isinstance(size, int) for size in sizes)
        return tuple(sizes) if known else None  # type: ignore[return-value]

    def twin(self, node: Any) -> fx.Node:
        if node in self.twins:
            return self.twins[node]
        value = constant(self.module, node)
        if value is not None:
            name = f"{node.target}_lifted"
            return add_constant(self.module, self.here, name, _without_time(value))
        sizes = self.size(node)
        assert sizes is not None  # the rules ask first
        return self.frames(self.emit(aten.permute.default, node, [0, 2, 1, 3, 4]), sizes)

    def frames(self, steps: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B, T, C, H, W] → [B·T, C, H, W]."""
        channels, _, height, width = sizes
        return self.emit(aten.reshape.default, steps, [-1, channels, height, width])

    def steps(self, frames: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B·T, C, H, W] → [B, T, C, H, W]."""
        channels, time, height, width = sizes
        return self.emit(aten.reshape.default, frames, [-1, time, channels, height, width])

    def lines(self, frames: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B·T, C, H, W] → [B, C, T, H·W]."""
        channels, time, height, width = sizes
        flat = self.emit(aten.reshape.default, frames, [-1, time, channels, height * width])
        return self.emit(aten.permute.default, flat, [0, 2, 1, 3])

    def frames_of_lines(self, lines: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B, C, T, H·W] → [B·T, C, H, W]."""
        turned = self.emit(aten.permute.default, lines, [0, 2, 1, 3])
        return self.frames(turned, sizes)

    def lifted_value(self, value: Tensor) -> Tensor:
        return value.transpose(1, 2).flatten(0, 1)

    def lowered(self, twin: fx.Node, value: Tensor) -> fx.Node:
        _, channels, time, height, width = value.shape
        steps = self.steps(twin, (channels, time, height, width))
        return self.emit(aten.permute.default, steps, [0, 2, 1, 3, 4])

    def fits(self, source: fx.Node, result: fx.Node) -> bool:
        """Constants have one value for all of time; volumes that and the batch of the result."""
        value, whole = self.value(source), self.value(result)
        if not isinstance(value, Tensor) or whole is None or value.dim() == 0:
            return False
        if constant(self.module, source) is not None:
            one_for_all = value.dim() < 5 or value.shape[0] == 1
            return one_for_all and (value.dim() < 3 or value.shape[-3] == 1)
        known = self.size(source) is not None and value.shape[0] == whole.shape[0]
        return known and value.shape[_TIME] in (1, whole.shape[_TIME])

    def operand(self, source: fx.Node, result: fx.Node) -> fx.Node:
        """Frames for each frame of the result: one may stand for all of time."""
        twin, sizes, whole = self.twin(source), self.size(source), self.size(result)
        if constant(self.module, source) is not None or sizes is None or whole is None:
            return twin
        channels, time, height, width = sizes
        if time == whole[1]:
            return twin
        steps = self.steps(twin, sizes)
        repeated = self.emit(aten.expand.default, steps, [-1, whole[1], channels, height, width])
        return self.frames(repeated, sizes)

    def constant(self, like: fx.Node, value: Tensor) -> fx.Node:
        """Register what was made of a weight or bias."""
        return add_constant(self.module, self.here, f"{like.target}_lifted", value)


def _without_time(value: Tensor) -> Tensor:
    """[…, 1, H, W] → […, H, W]."""
    return value.squeeze(-3) if value.dim() > 2 else value


def _three(value: Any) -> list[int]:
    """One number, or one for each of time, height and width."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 3 if len(values) == 1 else values


# Convolutions


@dataclass(frozen=True, kw_only=True)
class _Taps:
    """The frames that a convolution reads for one of its own: ``count`` of them.

    ``before`` and ``behind`` frames of zeros stand at the ends; negative ones are cut off.
    """

    count: int
    stride: int
    dilation: int
    before: int
    behind: int

    @property
    def trivial(self) -> bool:
        """Tell whether each frame is computed of itself."""
        return (self.count, self.stride, self.before, self.behind) == (1, 1, 0, 0)

    def __call__(self, lift: _Lift, frames: fx.Node, sizes: Sequence[int], groups: int) -> fx.Node:
        """[B·T, C, H, W] → [B·T', count·C, H, W], the taps of a group side by side."""
        if self.trivial:
            return frames
        _, time, *_ = sizes
        span = (self.stride, self.dilation, self.before, self.behind)
        return lift.emit(ops.frames_beside, frames, time, self.count, *span, groups)


def _conv(lift: _Lift, node: fx.Node) -> Twin | None:
    weight, sizes = constant(lift.module, node.args[1]), lift.size(node.args[0])
    if weight is None or sizes is None:
        return None
    count, *_ = weight.shape[2:]
    stride, dilation = (_three(argument(node, at, "", 1)) for at in (3, 5))
    padding: Any = argument(node, 4, "padding", 0)
    groups: Any = argument(node, 6, "groups", 1)
    named = isinstance(padding, str)
    reach = dilation[0] * (count - 1) if padding == "same" else 0
    before = reach // 2 if named else _three(padding)[0]
    taps = _Taps(
        count=count,
        stride=stride[0],
        dilation=dilation[0],
        before=before,
        behind=reach - before if named else before,
    )
    frames = taps(lift, lift.twin(node.args[0]), sizes, groups)
    side_by_side = weight.transpose(1, 2).flatten(1, 2)
    args = (
        frames,
        lift.constant(node.args[1], side_by_side),
        argument(node, 2, "bias"),
        stride[1:],
        padding if named else _three(padding)[1:],
        dilation[1:],
        groups,
    )
    return (aten.conv2d.padding if named else aten.conv2d.default), args


def _conv_transpose(lift: _Lift, node: fx.Node) -> Twin | None:
    weight, sizes = constant(lift.module, node.args[1]), lift.size(node.args[0])
    if weight is None or sizes is None:
        return None
    stride, padding, extra = (_three(argument(node, at, "", at == 3)) for at in (3, 4, 5))
    groups: Any = argument(node, 6, "groups", 1)
    dilation = _three(argument(node, 7, "dilation", 1))
    rest = (stride[1:], padding[1:], extra[1:], groups, dilation[1:])
    count = weight.shape[2]
    if count == stride[0] and groups == 1 and (padding[0], extra[0], dilation[0]) == (0, 0, 1):
        return _frames_apart(lift, node, sizes, weight, rest)
    # Zeros between the frames, and a convolution whose taps go back in time.
    channels, time, height, width = sizes
    frames = lift.twin(node.args[0])
    if stride[0] > 1:
        steps = lift.emit(aten.unsqueeze.default, lift.steps(frames, sizes), 2)
        amounts = [0, 0, 0, 0, 0, 0, 0, stride[0] - 1]
        spread = lift.emit(aten.constant_pad_nd.default, steps, amounts, 0)
        time *= stride[0]
        frames = lift.frames(spread, (channels, time, height, width))
    before = dilation[0] * (count - 1) - padding[0]
    behind = before + extra[0] - (stride[0] - 1)
    taps = _Taps(count=count, stride=1, dilation=dilation[0], before=before, behind=behind)
    frames = taps(lift, frames, (channels, time, height, width), groups)
    inputs, outputs, *_ = weight.shape
    apart = weight.flip(2).reshape(groups, inputs // groups, outputs, *weight.shape[2:])
    side_by_side = apart.permute(0, 3, 1, 2, 4, 5).flatten(0, 2)
    kernel = lift.constant(node.args[1], side_by_side)
    return aten.conv_transpose2d.input, (frames, kernel, argument(node, 2, "bias"), *rest)


def _frames_apart(
    lift: _Lift, node: fx.Node, sizes: Sequence[int], weight: Tensor, rest: tuple[Any, ...]
) -> Twin | None:
    """Frames that no two taps reach: the taps are outputs side by side."""
    bias: Any = argument(node, 2, "bias")
    values = constant(lift.module, bias)
    if bias is not None and values is None:
        return None
    inputs, outputs, count, *kernel = weight.shape
    beside = weight.transpose(1, 2).reshape(inputs, count * outputs, *kernel)
    args = (
        lift.twin(node.args[0]),
        lift.constant(node.args[1], beside),
        None if values is None else lift.constant(bias, values.repeat(count)),
        *rest,
    )
    wide = lift.emit(aten.conv_transpose2d.input, *args)
    size = lift.size(node)
    return None if size is None else (aten.reshape.default, (wide, [-1, size[0], *size[2:]]))


def _batch_norm(lift: _Lift, node: fx.Node) -> Twin | None:
    if lift.size(node) is None:
        return None
    return node.target, (lift.twin(node.args[0]), *node.args[1:]), dict(node.kwargs)


# Pooling and resizing: over space, then over time


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

    def maximum(self, lift: _Lift, image: fx.Node) -> fx.Node:
        """Emit the greatest value of each window."""
        args = (self.kernel, self.stride, self.padding, self.dilation, *self.rest)
        return lift.emit(aten.max_pool2d.default, image, *args)

    def average(self, lift: _Lift, image: fx.Node) -> fx.Node:
        """Emit the mean of each window."""
        args = (self.kernel, self.stride, self.padding, *self.rest)
        return lift.emit(aten.avg_pool2d.default, image, *args)


def _pooled(lift: _Lift, node: fx.Node, window: _Window, pool: Any) -> Twin | None:
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
    kernel = _three(node.args[1])
    return _Window(
        kernel=kernel,
        stride=_three(argument(node, 2, "stride", ()) or kernel),
        padding=_three(argument(node, 3, "padding", 0)),
        dilation=_three(dilation),
        rest=rest,
    )


def _max_pool(lift: _Lift, node: fx.Node) -> Twin | None:
    dilation = argument(node, 4, "dilation", 1)
    window = _window(node, dilation, (argument(node, 5, "ceil_mode", False),))
    return _pooled(lift, node, window, _Window.maximum)


def _average_pool(lift: _Lift, node: fx.Node) -> Twin | None:
    if argument(node, 6, "divisor_override") is not None:
        return None
    rest = (argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True))
    window, sizes = _window(node, 1, rest), lift.size(node.args[0])
    if sizes is not None and tuple(window.kernel) == sizes[1:] and not any(window.padding):
        return _overall(lift, node, sizes)
    return _pooled(lift, node, window, _Window.average)


def _overall(lift: _Lift, node: fx.Node, sizes: Sequence[int]) -> Twin:
    """The mean over all of time and space."""
    lines = lift.lines(lift.twin(node.args[0]), sizes)
    return aten.adaptive_avg_pool2d.default, (lines, [1, 1])


def _adaptive_pool(lift: _Lift, node: fx.Node) -> Twin | None:
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


def _resized(lift: _Lift, node: fx.Node, target: Any, options: int) -> Twin | None:
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


def _nearest(lift: _Lift, node: fx.Node) -> Twin | None:
    return _resized(lift, node, aten.upsample_nearest2d.vec, 0)


def _trilinear(lift: _Lift, node: fx.Node) -> Twin | None:
    return _resized(lift, node, aten.upsample_bilinear2d.vec, 1)


# What follows a layer


def _axis(axis: Any) -> int | None:
    """Axis of the frames for an axis of the volume; None for batch and time."""
    axis = int(axis) % 5
    return {1: 1, 3: 2, 4: 3}.get(axis)


def _slice(lift: _Lift, node: fx.Node) -> Twin | None:
    axis, sizes = int(argument(node, 1, "dim", 0)) % 5, lift.size(node)  # type: ignore[call-overload]
    before = lift.size(node.args[0])
    if axis == 0 or sizes is None or before is None:
        return None
    frames, span = lift.twin(node.args[0]), node.args[2:]
    if axis != _TIME:
        return node.target, (frames, _axis(axis), *span), dict(node.kwargs)
    steps = lift.emit(node.target, lift.steps(frames, before), 1, *span)
    return aten.reshape.default, (steps, [-1, sizes[0], *sizes[2:]])


def _pad(lift: _Lift, node: fx.Node) -> Twin | None:
    amounts: Any = node.args[1]
    before, after = lift.size(node.args[0]), lift.size(node)
    if before is None or after is None or len(amounts) > 6 or min(amounts) < 0:
        return None
    frames, space = lift.twin(node.args[0]), list(amounts[:4])
    if any(amounts[4:]):
        steps = lift.steps(frames, before)
        in_time = [0, 0, 0, 0, 0, 0, *amounts[4:]]
        steps = lift.emit(node.target, steps, in_time, *node.args[2:])
        frames = lift.frames(steps, before)
    return node.target, (frames, space, *node.args[2:]), dict(node.kwargs)


def _concat(lift: _Lift, node: fx.Node) -> Twin | None:
    parts: Any = node.args[0]
    sizes = [lift.size(part) for part in parts]
    whole = lift.size(node)
    axis = int(argument(node, 1, "dim", 0)) % 5  # type: ignore[call-overload]
    if axis == 0 or whole is None or any(size is None for size in sizes):
        return None
    if any(constant(lift.module, part) is not None for part in parts):
        return None
    frames = [lift.twin(part) for part in parts]
    if axis != _TIME:
        return aten.cat.default, (frames, _axis(axis))
    steps = [lift.steps(part, size) for part, size in zip(frames, sizes, strict=True)]  # type: ignore[arg-type]
    joined = lift.emit(aten.cat.default, steps, 1)
    return aten.reshape.default, (joined, [-1, whole[0], *whole[2:]])


def _mean(lift: _Lift, node: fx.Node) -> Twin | None:
    """The mean over all of a volume is that over its lines; over all of space, that of frames."""
    sizes = lift.size(node.args[0])
    axes: Any = argument(node, 1, "dim")
    wanted = sorted(int(axis) % 5 for axis in axes or ())
    keep = bool(argument(node, 2, "keepdim", False))
    if sizes is None:
        return None
    if wanted == [2, 3, 4]:
        lines = lift.lines(lift.twin(node.args[0]), sizes)
        return aten.mean.dim, (lines, [2, 3], keep)
    if wanted == [3, 4] and keep:
        return aten.mean.dim, (lift.twin(node.args[0]), [2, 3], True)
    return None


_LAYERS: Rules = {
    aten.conv3d.default: _conv,
    aten.conv3d.padding: _conv,
    aten.conv_transpose3d.input: _conv_transpose,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool3d.default: _max_pool,
    aten.avg_pool3d.default: _average_pool,
    aten.adaptive_avg_pool3d.default: _adaptive_pool,
    aten.upsample_nearest3d.vec: _nearest,
    aten.upsample_trilinear3d.vec: _trilinear,
}
_FOLLOWERS: Rules = {
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: _concat,
    aten.mean.dim: _mean,
}

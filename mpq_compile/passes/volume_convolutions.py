"""Convolutions of volumes: the frames that one reads lie side by side, as channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, constant
from mpq_compile.passes.lifting import Twin
from mpq_compile.passes.volume_lift import VolumeLift, three

aten = torch.ops.aten


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

    def __call__(
        self, lift: VolumeLift, frames: fx.Node, sizes: Sequence[int], groups: int
    ) -> fx.Node:
        """[B·T, C, H, W] → [B·T', count·C, H, W], the taps of a group side by side."""
        if self.trivial:
            return frames
        _, time, *_ = sizes
        span = (self.stride, self.dilation, self.before, self.behind)
        return lift.emit(ops.frames_beside, frames, time, self.count, *span, groups)


def convolution(lift: VolumeLift, node: fx.Node) -> Twin | None:
    weight, sizes = constant(lift.module, node.args[1]), lift.size(node.args[0])
    if weight is None or sizes is None:
        return None
    count, *_ = weight.shape[2:]
    stride, dilation = (three(argument(node, at, "", 1)) for at in (3, 5))
    padding: Any = argument(node, 4, "padding", 0)
    groups: Any = argument(node, 6, "groups", 1)
    named = isinstance(padding, str)
    reach = dilation[0] * (count - 1) if padding == "same" else 0
    before = reach // 2 if named else three(padding)[0]
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
        padding if named else three(padding)[1:],
        dilation[1:],
        groups,
    )
    return (aten.conv2d.padding if named else aten.conv2d.default), args


def transposed(lift: VolumeLift, node: fx.Node) -> Twin | None:
    weight, sizes = constant(lift.module, node.args[1]), lift.size(node.args[0])
    if weight is None or sizes is None:
        return None
    stride, padding, extra = (three(argument(node, at, "", at == 3)) for at in (3, 4, 5))
    groups: Any = argument(node, 6, "groups", 1)
    dilation = three(argument(node, 7, "dilation", 1))
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
    lift: VolumeLift, node: fx.Node, sizes: Sequence[int], weight: Tensor, rest: tuple[Any, ...]
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

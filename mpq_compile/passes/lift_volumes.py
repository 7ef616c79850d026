"""Volumes [B, C, T, H, W] become frames [B·T, C, H, W]: 3-D layers are 2-D ones over frames.

A convolution that reads several frames reads them side by side, as channels: its weight
[N, C/g, KT, KH, KW] is [N, KT·C/g, KH, KW], and what is added up is the same. Pooling over time is
pooling over lines, images [B, C, T, H·W]. So 3-D layers are sites with the same kernels, oracle and
rules as an image's, and what lies between two of them (activations, norms, sums, concatenation,
padding, slices) works on frames as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes import volume_convolutions, volume_pools
from mpq_compile.passes.base import argument, constant
from mpq_compile.passes.lifting import Rules, Twin
from mpq_compile.passes.volume_lift import TIME, VolumeLift

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class LiftVolumes:
    """Lift each 3-D layer, and what can be lifted of what reads it."""

    name: str = "lift_volumes"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        VolumeLift(module, _LAYERS, _FOLLOWERS).run()
        return module


def _batch_norm(lift: VolumeLift, node: fx.Node) -> Twin | None:
    if lift.size(node) is None:
        return None
    return node.target, (lift.twin(node.args[0]), *node.args[1:]), dict(node.kwargs)


# What follows a layer


def _axis(axis: Any) -> int | None:
    """Axis of the frames for an axis of the volume; None for batch and time."""
    axis = int(axis) % 5
    return {1: 1, 3: 2, 4: 3}.get(axis)


def _slice(lift: VolumeLift, node: fx.Node) -> Twin | None:
    axis, sizes = int(argument(node, 1, "dim", 0)) % 5, lift.size(node)  # type: ignore[call-overload]
    before = lift.size(node.args[0])
    if axis == 0 or sizes is None or before is None:
        return None
    frames, span = lift.twin(node.args[0]), node.args[2:]
    if axis != TIME:
        return node.target, (frames, _axis(axis), *span), dict(node.kwargs)
    steps = lift.emit(node.target, lift.steps(frames, before), 1, *span)
    return aten.reshape.default, (steps, [-1, sizes[0], *sizes[2:]])


def _pad(lift: VolumeLift, node: fx.Node) -> Twin | None:
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


def _concat(lift: VolumeLift, node: fx.Node) -> Twin | None:
    parts: Any = node.args[0]
    sizes = [lift.size(part) for part in parts]
    whole = lift.size(node)
    axis = int(argument(node, 1, "dim", 0)) % 5  # type: ignore[call-overload]
    if axis == 0 or whole is None or any(size is None for size in sizes):
        return None
    if any(constant(lift.module, part) is not None for part in parts):
        return None
    frames = [lift.twin(part) for part in parts]
    if axis != TIME:
        return aten.cat.default, (frames, _axis(axis))
    steps = [lift.steps(part, size) for part, size in zip(frames, sizes, strict=True)]  # type: ignore[arg-type]
    joined = lift.emit(aten.cat.default, steps, 1)
    return aten.reshape.default, (joined, [-1, whole[0], *whole[2:]])


def _mean(lift: VolumeLift, node: fx.Node) -> Twin | None:
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
    aten.conv3d.default: volume_convolutions.convolution,
    aten.conv3d.padding: volume_convolutions.convolution,
    aten.conv_transpose3d.input: volume_convolutions.transposed,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool3d.default: volume_pools.max_pool,
    aten.avg_pool3d.default: volume_pools.average_pool,
    aten.adaptive_avg_pool3d.default: volume_pools.adaptive_pool,
    aten.upsample_nearest3d.vec: volume_pools.nearest,
    aten.upsample_trilinear3d.vec: volume_pools.trilinear,
}
_FOLLOWERS: Rules = {
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: _concat,
    aten.mean.dim: _mean,
}

"""Signals [B, C, L] become images [B, C, 1, L]: 1-D convolutions are 2-D ones of height one.

So a signal's layers are sites with the same kernels, oracle and rules as an image's. What lies
between two of them (activations, sums, concatenation, padding, slices) is lifted too, and the
only reshapes left are those at the ends, which move nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, argument, constant
from mpq_compile.passes.lifting import Lifting, Rules, Twin

aten = torch.ops.aten
_HEIGHT = 2  # the axis that is put in


@dataclass(frozen=True, kw_only=True)
class LiftOneDimension:
    """Lift each 1-D layer, and what can be lifted of what reads it."""

    name: str = "lift_one_dimension"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        _Lift(module, _LAYERS, _FOLLOWERS).run()
        return module


class _Lift(Lifting):
    """A signal's twin is an image of height one."""

    rank = 3

    def twin(self, node: Any) -> fx.Node:
        if node in self.twins:
            return self.twins[node]
        value = constant(self.module, node)
        if value is not None:
            name = f"{node.target}_lifted"
            return add_constant(self.module, self.here, name, value.unsqueeze(-2))
        image = self.module.graph.call_function(aten.unsqueeze.default, (node, -2))
        image.meta["val"] = self.lifted_value(node.meta["val"])
        return image

    def lifted_value(self, value: Tensor) -> Tensor:
        return value.unsqueeze(-2)

    def lowered(self, twin: fx.Node, value: Tensor) -> fx.Node:
        return self.module.graph.call_function(aten.squeeze.dim, (twin, _HEIGHT))

    def weight(self, weight: Any) -> fx.Node | None:
        """Return [N, C, 1, K] of a constant [N, C, K]; None where it is computed."""
        return None if constant(self.module, weight) is None else self.twin(weight)


def _wide(value: Any, height: int) -> tuple[int, int]:
    """[w] or w → (height, w)."""
    return (height, value[0] if isinstance(value, (list, tuple)) else value)


def _conv(lift: _Lift, node: fx.Node) -> Twin | None:
    weight = lift.weight(node.args[1])
    if weight is None:
        return None
    padding: Any = argument(node, 4, "padding", 0)
    args = (
        lift.twin(node.args[0]),
        weight,
        argument(node, 2, "bias"),
        _wide(argument(node, 3, "stride", 1), 1),
        padding if isinstance(padding, str) else _wide(padding, 0),
        _wide(argument(node, 5, "dilation", 1), 1),
        argument(node, 6, "groups", 1),
    )
    return (aten.conv2d.padding if isinstance(padding, str) else aten.conv2d.default), args


def _conv_transpose(lift: _Lift, node: fx.Node) -> Twin | None:
    weight = lift.weight(node.args[1])
    if weight is None:
        return None
    args = (
        lift.twin(node.args[0]),
        weight,
        argument(node, 2, "bias"),
        _wide(argument(node, 3, "stride", 1), 1),
        _wide(argument(node, 4, "padding", 0), 0),
        _wide(argument(node, 5, "output_padding", 0), 0),
        argument(node, 6, "groups", 1),
        _wide(argument(node, 7, "dilation", 1), 1),
    )
    return aten.conv_transpose2d.input, args


def _batch_norm(lift: _Lift, node: fx.Node) -> Twin | None:
    return node.target, (lift.twin(node.args[0]), *node.args[1:]), dict(node.kwargs)


def _pool_geometry(node: fx.Node) -> tuple[Any, ...]:
    kernel: Any = node.args[1]
    stride: Any = argument(node, 2, "stride", ()) or kernel
    padding: Any = argument(node, 3, "padding", 0)
    return _wide(kernel, 1), _wide(stride, 1), _wide(padding, 0)


def _max_pool(lift: _Lift, node: fx.Node) -> Twin | None:
    dilation = _wide(argument(node, 4, "dilation", 1), 1)
    ceil_mode = argument(node, 5, "ceil_mode", False)
    args = (lift.twin(node.args[0]), *_pool_geometry(node), dilation, ceil_mode)
    return aten.max_pool2d.default, args


def _average_pool(lift: _Lift, node: fx.Node) -> Twin | None:
    rest = (argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True))
    args = (lift.twin(node.args[0]), *_pool_geometry(node), *rest)
    return aten.avg_pool2d.default, args


def _adaptive_pool(lift: _Lift, node: fx.Node) -> Twin | None:
    return aten.adaptive_avg_pool2d.default, (lift.twin(node.args[0]), _wide(node.args[1], 1))


def _nearest(lift: _Lift, node: fx.Node) -> Twin | None:
    size, factor = argument(node, 1, "output_size"), argument(node, 2, "scale_factors")
    sizes = None if size is None else _wide(size, 1)
    factors = None if factor is None else (1.0, factor[0])  # type: ignore[index]
    return aten.upsample_nearest2d.vec, (lift.twin(node.args[0]), sizes, factors)


# What follows a layer


def _axis(axis: Any) -> int:
    """Axis of the image for an axis of the signal."""
    axis = int(axis) % 3
    return axis + 1 if axis == _HEIGHT else axis


def _slice(lift: _Lift, node: fx.Node) -> Twin | None:
    args = (lift.twin(node.args[0]), _axis(argument(node, 1, "dim", 0)), *node.args[2:])
    kwargs = {key: value for key, value in node.kwargs.items() if key != "dim"}
    return node.target, args, kwargs


def _pad(lift: _Lift, node: fx.Node) -> Twin | None:
    amounts: Any = node.args[1]
    if len(amounts) != 2:
        return None
    return node.target, (lift.twin(node.args[0]), *node.args[1:]), dict(node.kwargs)


def _concat(lift: _Lift, node: fx.Node) -> Twin | None:
    parts: Any = node.args[0]
    axis = _axis(argument(node, 1, "dim", 0))
    return node.target, ([lift.twin(part) for part in parts], axis)


def _mean(lift: _Lift, node: fx.Node) -> Twin | None:
    """The mean over all of a signal is that over all pixels."""
    axes: Any = argument(node, 1, "dim")
    if not axes or [int(axis) % 3 for axis in axes] != [2]:
        return None
    keep = bool(argument(node, 2, "keepdim", False))
    return aten.mean.dim, (lift.twin(node.args[0]), [2, 3], keep)


_LAYERS: Rules = {
    aten.conv1d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv_transpose1d.default: _conv_transpose,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool1d.default: _max_pool,
    aten.avg_pool1d.default: _average_pool,
    aten.adaptive_avg_pool1d.default: _adaptive_pool,
    aten.upsample_nearest1d.vec: _nearest,
}
_FOLLOWERS: Rules = {
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: _concat,
    aten.mean.dim: _mean,
}

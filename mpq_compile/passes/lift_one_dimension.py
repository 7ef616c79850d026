"""Signals [B, C, L] become images [B, C, 1, L]: 1-D convolutions are 2-D ones of height one.

So a signal's layers are sites with the same kernels, oracle and rules as an image's. What lies
between two of them (activations, sums, concatenation, padding, slices) is lifted too, and the
only reshapes left are those at the ends, which move nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import KEPT_META, add_constant, argument, constant

aten = torch.ops.aten
_HEIGHT = 2  # the axis that is put in


@dataclass(frozen=True, kw_only=True)
class LiftOneDimension:
    """Lift each 1-D layer, and what can be lifted of what reads it."""

    name: str = "lift_one_dimension"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        _Lift(module).run()
        return module


class _Lift:
    """State of the rewrite: the twin of each signal that has one."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.twins: dict[fx.Node, fx.Node] = {}
        self._here = next(iter(module.graph.nodes))

    def run(self) -> None:
        for node in list(self.module.graph.nodes):
            if node.op == "call_function" and _rank(node) in (2, 3):
                self._here = node
                with self.module.graph.inserting_before(node):
                    self._visit(node)
        for node in reversed(self.twins):
            self._retire(node, self.twins[node])

    def _visit(self, node: fx.Node) -> None:
        if _rank(node) == 3 and node.target in _LAYERS and _rank(node.args[0]) == 3:
            args = _LAYERS[node.target](self, node)
        elif not any(source in self.twins for source in node.all_input_nodes):
            return
        elif node.target in _FOLLOWERS:
            args = _FOLLOWERS[node.target](self, node)
        else:
            args = _pointwise(self, node)
        if args is not None:
            self._add(node, *args)

    def _add(self, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Any = None) -> None:
        twin = self.module.graph.call_function(target, args, kwargs or {})
        twin.meta.update({key: node.meta[key] for key in KEPT_META if key in node.meta})
        if _rank(node) == 3:
            twin.meta["val"] = node.meta["val"].unsqueeze(_HEIGHT)
        self.twins[node] = twin

    def _retire(self, node: fx.Node, twin: fx.Node) -> None:
        """Give the readers that were not lifted the signal itself."""
        if node.users:
            flat = twin
            if _rank(node) == 3:
                with self.module.graph.inserting_after(twin):
                    flat = self.module.graph.call_function(aten.squeeze.dim, (twin, _HEIGHT))
                flat.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(flat)
        self.module.graph.erase_node(node)

    def image(self, node: Any) -> Any:
        """Return the twin of a signal, or of a constant that broadcasts to one."""
        if node in self.twins:
            return self.twins[node]
        value = constant(self.module, node)
        if value is not None:
            name = f"{node.target}_lifted"
            return add_constant(self.module, self._here, name, value.unsqueeze(-2))
        image = self.module.graph.call_function(aten.unsqueeze.default, (node, -2))
        image.meta["val"] = node.meta["val"].unsqueeze(-2)
        return image

    def weight(self, weight: Any) -> fx.Node | None:
        """Return [N, C, 1, K] of a constant [N, C, K]; None where it is computed."""
        return None if constant(self.module, weight) is None else self.image(weight)

    def rank(self, node: fx.Node) -> int | None:
        """Return the number of axes of a tensor."""
        value = constant(self.module, node)
        return _rank(node) if value is None else value.dim()


_Args = tuple[Any, tuple[Any, ...]] | tuple[Any, tuple[Any, ...], dict[str, Any]] | None


def _rank(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, Tensor) else None


def _wide(value: Any, height: int) -> tuple[int, int]:
    """[w] or w → (height, w)."""
    return (height, value[0] if isinstance(value, (list, tuple)) else value)


def _conv(lift: _Lift, node: fx.Node) -> _Args:
    weight = lift.weight(node.args[1])
    if weight is None:
        return None
    padding: Any = argument(node, 4, "padding", 0)
    args = (
        lift.image(node.args[0]),
        weight,
        argument(node, 2, "bias"),
        _wide(argument(node, 3, "stride", 1), 1),
        padding if isinstance(padding, str) else _wide(padding, 0),
        _wide(argument(node, 5, "dilation", 1), 1),
        argument(node, 6, "groups", 1),
    )
    return (aten.conv2d.padding if isinstance(padding, str) else aten.conv2d.default), args


def _conv_transpose(lift: _Lift, node: fx.Node) -> _Args:
    weight = lift.weight(node.args[1])
    if weight is None:
        return None
    args = (
        lift.image(node.args[0]),
        weight,
        argument(node, 2, "bias"),
        _wide(argument(node, 3, "stride", 1), 1),
        _wide(argument(node, 4, "padding", 0), 0),
        _wide(argument(node, 5, "output_padding", 0), 0),
        argument(node, 6, "groups", 1),
        _wide(argument(node, 7, "dilation", 1), 1),
    )
    return aten.conv_transpose2d.input, args


def _batch_norm(lift: _Lift, node: fx.Node) -> _Args:
    return node.target, (lift.image(node.args[0]), *node.args[1:]), dict(node.kwargs)


def _pool_geometry(node: fx.Node) -> tuple[Any, ...]:
    kernel: Any = node.args[1]
    stride: Any = argument(node, 2, "stride", ()) or kernel
    padding: Any = argument(node, 3, "padding", 0)
    return _wide(kernel, 1), _wide(stride, 1), _wide(padding, 0)


def _max_pool(lift: _Lift, node: fx.Node) -> _Args:
    dilation = _wide(argument(node, 4, "dilation", 1), 1)
    ceil_mode = argument(node, 5, "ceil_mode", False)
    args = (lift.image(node.args[0]), *_pool_geometry(node), dilation, ceil_mode)
    return aten.max_pool2d.default, args


def _average_pool(lift: _Lift, node: fx.Node) -> _Args:
    rest = (argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True))
    args = (lift.image(node.args[0]), *_pool_geometry(node), *rest)
    return aten.avg_pool2d.default, args


def _adaptive_pool(lift: _Lift, node: fx.Node) -> _Args:
    return aten.adaptive_avg_pool2d.default, (lift.image(node.args[0]), _wide(node.args[1], 1))


def _nearest(lift: _Lift, node: fx.Node) -> _Args:
    size, factor = argument(node, 1, "output_size"), argument(node, 2, "scale_factors")
    sizes = None if size is None else _wide(size, 1)
    factors = None if factor is None else (1.0, factor[0])  # type: ignore[index]
    return aten.upsample_nearest2d.vec, (lift.image(node.args[0]), sizes, factors)


# What follows a layer


def _axis(axis: Any) -> int:
    """Axis of the image for an axis of the signal."""
    axis = int(axis) % 3
    return axis + 1 if axis == _HEIGHT else axis


def _slice(lift: _Lift, node: fx.Node) -> _Args:
    args = (lift.image(node.args[0]), _axis(argument(node, 1, "dim", 0)), *node.args[2:])
    kwargs = {key: value for key, value in node.kwargs.items() if key != "dim"}
    return node.target, args, kwargs


def _pad(lift: _Lift, node: fx.Node) -> _Args:
    amounts: Any = node.args[1]
    if len(amounts) != 2:
        return None
    return node.target, (lift.image(node.args[0]), *node.args[1:]), dict(node.kwargs)


def _concat(lift: _Lift, node: fx.Node) -> _Args:
    parts: Any = node.args[0]
    axis = _axis(argument(node, 1, "dim", 0))
    return node.target, ([lift.image(part) for part in parts], axis)


def _mean(lift: _Lift, node: fx.Node) -> _Args:
    """The mean over all of a signal is that over all pixels."""
    axes: Any = argument(node, 1, "dim")
    if not axes or [int(axis) % 3 for axis in axes] != [2]:
        return None
    keep = bool(argument(node, 2, "keepdim", False))
    return aten.mean.dim, (lift.image(node.args[0]), [2, 3], keep)


def _pointwise(lift: _Lift, node: fx.Node) -> _Args:
    """Any function of single values; constants broadcast to the image as to the signal."""
    tags = getattr(node.target, "tags", ())
    ranks = [lift.rank(source) for source in node.all_input_nodes]
    if torch.Tag.pointwise not in tags or _rank(node) != 3 or not all(ranks):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lift.image)
    return node.target, tuple(args), dict(kwargs)


_LAYERS: dict[Any, Callable[[_Lift, fx.Node], _Args]] = {
    aten.conv1d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv_transpose1d.default: _conv_transpose,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool1d.default: _max_pool,
    aten.avg_pool1d.default: _average_pool,
    aten.adaptive_avg_pool1d.default: _adaptive_pool,
    aten.upsample_nearest1d.vec: _nearest,
}
_FOLLOWERS: dict[Any, Callable[[_Lift, fx.Node], _Args]] = {
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: _concat,
    aten.mean.dim: _mean,
}

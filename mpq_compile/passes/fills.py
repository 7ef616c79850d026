"""Tensors of one value: constants, expanded to the batch where that is free.

States that a network starts from, masks of ones and what is like another tensor take no data but a
shape; so they are known before the call, for every sample the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, argument, call

aten = torch.ops.aten
# What a call fills with: a number, or the place of its argument.
_NUMBERS: Mapping[Any, int] = {
    aten.zeros.default: 0,
    aten.zeros_like.default: 0,
    aten.new_zeros.default: 0,
    aten.ones.default: 1,
    aten.ones_like.default: 1,
    aten.new_ones.default: 1,
}
_PLACES: Mapping[Any, int] = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.new_full.default: 2,
}
# Where a call says its sizes.
_SIZES: Mapping[Any, int] = {
    aten.zeros.default: 0,
    aten.ones.default: 0,
    aten.full.default: 0,
    aten.new_zeros.default: 1,
    aten.new_ones.default: 1,
    aten.new_full.default: 1,
}


@dataclass(frozen=True, kw_only=True)
class Fills:
    """Replace calls that fill a tensor, where at most the batch is free."""

    name: str = "fills"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        for node in list(module.graph.nodes):
            value = _filled_with(node)
            if value is not None:
                _fill(module, node, value, inputs)
        return module


def _filled_with(node: fx.Node) -> Any:
    """Return the number that a call fills with; None where that is computed, or no such call."""
    if node.op != "call_function":
        return None
    if node.target in _NUMBERS:
        return _NUMBERS[node.target]
    if node.target not in _PLACES:
        return None
    value = argument(node, _PLACES[node.target], "fill_value")
    return value if isinstance(value, (bool, int, float)) else None


def _fill(module: fx.GraphModule, node: fx.Node, value: Any, inputs: list[fx.Node]) -> None:
    like = node.meta.get("val")
    if not isinstance(like, Tensor):
        return
    free = [axis for axis, size in enumerate(like.shape) if not isinstance(size, int)]
    sizes = _sizes(module, node, like, free, inputs)
    if sizes is None:
        return
    shape = [1 if axis in free else size for axis, size in enumerate(like.shape)]
    filled = torch.full(shape, value, dtype=like.dtype)
    new = add_constant(module, node, f"filled_{node.name}", filled)
    new.meta["val"] = filled
    if free:
        with module.graph.inserting_before(node):
            new = module.graph.call_function(aten.expand.default, (new, sizes))
        new.meta["val"] = like
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _sizes(
    module: fx.GraphModule, node: fx.Node, like: Tensor, free: list[int], inputs: list[fx.Node]
) -> list[Any] | None:
    """Return the sizes to expand to: those that are asked for, or what the batch is."""
    asked = node.args[_SIZES[node.target]] if node.target in _SIZES else None
    if isinstance(asked, (list, tuple)):
        return list(asked)
    if len(free) > 1:
        return None
    sizes: list[Any] = [-1] * like.dim()
    for axis in free:
        source = _batch_source(like.shape[axis], inputs)
        if source is None:
            return None
        sizes[axis] = call(module, node, aten.sym_size.int, source, 0)
    return sizes


def _batch_source(size: Any, inputs: list[fx.Node]) -> fx.Node | None:
    """Return the input whose batch is of this size."""
    for node in inputs:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dim() and str(value.shape[0]) == str(size):
            return node
    return None

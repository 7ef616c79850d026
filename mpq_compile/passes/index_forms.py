"""One form for choices and look-ups: ``where`` over tensors, ``index_select`` of positions.

Numbers become tensors, which are parameters of the network like any other constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from mpq_compile.passes.base import add_constant, call, constant, replace

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class IndexForms:
    """Replace the forms that take numbers, and indexing by one vector of integers."""

    name: str = "index_forms"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            rule = _RULES.get(node.target) if node.op == "call_function" else None
            if rule is not None:
                rule(module, node)
        return module


def _number(module: fx.GraphModule, node: fx.Node, value: Any) -> Any:
    """Return a tensor of one element that holds a number, of the result's dtype."""
    if not isinstance(value, (int, float)):
        return value
    dtype = node.meta["val"].dtype
    return add_constant(module, node, f"{node.name}_value", torch.tensor([value], dtype=dtype))


def _where(module: fx.GraphModule, node: fx.Node) -> None:
    condition, *values = node.args[:3]
    replace(module, node, aten.where.self, (condition, *(_number(module, node, v) for v in values)))


def _masked_fill(module: fx.GraphModule, node: fx.Node) -> None:
    x, mask, value = node.args[:3]
    replace(module, node, aten.where.self, (mask, _number(module, node, value), x))


def _index(module: fx.GraphModule, node: fx.Node) -> None:
    """Rows of a table are an embedding; positions along one dimension are selected."""
    source, indices = node.args[:2]
    places = [place for place, index in enumerate(indices) if index is not None]
    if len(places) == 2:
        _pairs(module, node, places)
        return
    index: Any = indices[places[0]] if len(places) == 1 else None
    seen = constant(module, index)
    if seen is not None and seen.dtype == torch.bool and seen.dim() == 1:
        chosen = seen.nonzero().flatten()
        index = add_constant(module, node, f"{index.target}_places", chosen)
        index.meta["val"] = chosen
    value = index.meta.get("val") if index is not None else None
    if not isinstance(value, Tensor) or value.dtype not in (torch.int64, torch.int32):
        return
    axis = places[0]
    unknown = constant(module, index) is None
    index = _from_the_front(module, node, index, axis)
    if unknown and axis == 0 and _is_table(constant(module, source)):
        replace(module, node, aten.embedding.default, (source, index))
        return
    if value.dim() == 1:
        replace(module, node, aten.index_select.default, (source, axis, index))
        return
    sizes = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
    if sizes.count(-1) > 1:
        return
    flat = call(module, node, aten.reshape.default, index, [-1])
    chosen = call(module, node, aten.index_select.default, source, axis, flat)
    replace(module, node, aten.reshape.default, (chosen, sizes))


def _pairs(module: fx.GraphModule, node: fx.Node, places: list[int]) -> None:
    """``x[:, i, j]`` of known vectors: positions of both dimensions as one."""
    source: Any = node.args[0]
    axis, shape = places[0], list(source.meta["val"].shape)
    rows, columns = (constant(module, node.args[1][place]) for place in places)
    sizes = shape[axis : axis + 2]
    if (
        rows is None
        or columns is None
        or places[1] != axis + 1
        or torch.bool in (rows.dtype, columns.dtype)
    ):
        return
    if not all(isinstance(size, int) for size in sizes) or rows.dim() != 1 or columns.dim() != 1:
        return
    flat = rows % sizes[0] * sizes[1] + columns % sizes[1]
    merged = [size if isinstance(size, int) else -1 for size in shape]
    merged[axis : axis + 2] = [sizes[0] * sizes[1]]
    if merged.count(-1) > 1:
        return
    joined = call(module, node, aten.reshape.default, source, merged)
    vector = add_constant(module, node, f"{node.name}_pairs", flat)
    replace(module, node, aten.index_select.default, (joined, axis, vector))


def _is_table(value: Tensor | None) -> bool:
    """Tell whether rows were learned: tables of a rotation's angles are read as they are."""
    return isinstance(value, nn.Parameter) and value.dim() == 2


def _from_the_front(module: fx.GraphModule, node: fx.Node, index: fx.Node, axis: int) -> fx.Node:
    """Return positions with those that count from the end counted from the front."""
    known = constant(module, index)
    source: Any = node.args[0]
    whole = constant(module, source)
    size = (source.meta["val"] if whole is None else whole).shape[axis]
    if not isinstance(size, int) or (known is not None and not bool((known < 0).any())):
        return index
    if known is None:
        negative = call(module, node, aten.lt.Scalar, index, 0)
        shifted = call(module, node, aten.add.Tensor, index, size)
        return call(module, node, aten.where.self, negative, shifted, index)
    return add_constant(module, node, f"{index.target}_from_the_front", known % size)


def _floor_divide(module: fx.GraphModule, node: fx.Node) -> None:
    node.args = (node.args[0], _number(module, node, node.args[1]))


def _arithmetic(module: fx.GraphModule, node: fx.Node) -> None:
    """Integers that become floats are cast first: ``1.0 - mask``, or a quotient."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return
    for source in node.all_input_nodes:
        operand = source.meta.get("val")
        if isinstance(operand, Tensor) and not operand.is_floating_point():
            cast = call(module, node, aten.to.dtype, source, value.dtype)
            node.replace_input_with(source, cast)


def _cumsum(module: fx.GraphModule, node: fx.Node) -> None:
    """Sums of short integers are int64, which only the result tells."""
    node.kwargs = {**node.kwargs, "dtype": node.meta["val"].dtype}


_RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    aten.where.ScalarSelf: _where,
    aten.where.ScalarOther: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.index.Tensor: _index,
    aten.cumsum.default: _cumsum,
    aten.floor_divide.default: _floor_divide,
    **dict.fromkeys(
        (
            aten.add.Tensor,
            aten.sub.Tensor,
            aten.rsub.Scalar,
            aten.mul.Tensor,
            aten.div.Tensor,
        ),
        _arithmetic,
    ),
}

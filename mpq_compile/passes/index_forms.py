"""One form for choices and look-ups: ``where`` over tensors, ``index_select`` of positions.

Numbers become tensors, which are parameters of the network like any other constant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, replace

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
    indices: Any = node.args[1]
    places = [place for place, index in enumerate(indices) if index is not None]
    value = indices[places[0]].meta.get("val") if len(places) == 1 else None
    if isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 1:
        args = (node.args[0], places[0], indices[places[0]])
        replace(module, node, aten.index_select.default, args)


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
}

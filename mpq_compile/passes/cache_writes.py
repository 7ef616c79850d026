"""One form for what writes rows into a tensor at given positions: a step of a KV cache.

``index_copy``, ``index_put`` along one axis, ``slice_scatter`` and ``select_scatter`` become
``ops.write_rows``, which the lowering does in place where it may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import add_constant, argument, replace

aten = torch.ops.aten
Write = tuple[fx.Node, fx.Node, fx.Node, int]


@dataclass(frozen=True, kw_only=True)
class CacheWrites:
    """Replace each write of whole rows; what accumulates or broadcasts stays as it is."""

    name: str = "cache_writes"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            rule = _RULES.get(node.target) if node.op == "call_function" else None
            if rule is None or not isinstance(node.meta.get("val"), Tensor):
                continue
            written = rule(module, node)
            if written is not None:
                replace(module, node, ops.write_rows, written)
        return module


def _value(node: Any) -> Tensor:
    return node.meta["val"]


def _index_copy(module: fx.GraphModule, node: fx.Node) -> Write | None:
    cache, axis, position, rows = node.args[:4]
    return _positioned(module, node, cache, rows, position, int(axis))


def _index_put(module: fx.GraphModule, node: fx.Node) -> Write | None:
    """cache[:, :, position] = rows, with rows of the cache's own shape beside that axis."""
    cache, indices, rows = node.args[:3]
    places = [place for place, index in enumerate(indices) if index is not None]
    if argument(node, 3, "accumulate", False) or len(places) != 1:
        return None
    position = indices[places[0]]
    if _value(position).dtype != torch.int64:
        return None  # a mask, which takes as many rows as it has ones
    rows = _widened(module, node, rows, _value(cache).dim())
    return _positioned(module, node, cache, rows, position, places[0])


def _widened(module: fx.GraphModule, node: fx.Node, rows: Any, rank: int) -> fx.Node:
    """Return rows of ``rank`` axes: an assignment leaves leading axes of one out."""
    value = _value(rows)
    shape = [1] * (rank - value.dim()) + list(value.shape)
    if value.dim() == rank or not all(isinstance(size, int) for size in shape):
        return rows
    with module.graph.inserting_before(node):
        wide = module.graph.call_function(aten.reshape.default, (rows, shape))
    wide.meta["val"] = value.reshape(shape)
    return wide


def _positioned(
    module: fx.GraphModule, node: fx.Node, cache: Any, rows: Any, position: Any, axis: int
) -> Write | None:
    axis %= _value(cache).dim()
    if _value(position).dim() > 1 or _value(rows).dim() != _value(cache).dim():
        return None
    count = _value(position).numel()
    expected = [count if i == axis else size for i, size in enumerate(_value(cache).shape)]
    if list(_value(rows).shape) != expected:
        return None
    if _value(position).dim() == 0:
        with module.graph.inserting_before(node):
            position = module.graph.call_function(aten.unsqueeze.default, (position, 0))
    return cache, rows, position, axis


def _slice_scatter(module: fx.GraphModule, node: fx.Node) -> Write | None:
    cache, rows = node.args[:2]
    axis: Any = argument(node, 2, "dim", 0)
    span = slice(*(argument(node, i, name) for i, name in ((3, "start"), (4, "end"), (5, "step"))))
    if not all(bound is None or isinstance(bound, int) for bound in (span.start, span.stop)):
        return None
    axis %= _value(cache).dim()
    size = _value(cache).shape[axis]
    if not isinstance(size, int):
        return None
    places = range(*span.indices(size))
    return cache, rows, _constant_position(module, node, places), axis


def _select_scatter(module: fx.GraphModule, node: fx.Node) -> Write | None:
    cache, row, axis, index = node.args[:4]
    axis %= _value(cache).dim()
    size = _value(cache).shape[axis]
    if not isinstance(index, int) or not isinstance(size, int):
        return None
    position = _constant_position(module, node, range(index % size, index % size + 1))
    with module.graph.inserting_before(node):
        rows = module.graph.call_function(aten.unsqueeze.default, (row, axis))
    return cache, rows, position, axis


def _constant_position(module: fx.GraphModule, node: fx.Node, places: range) -> fx.Node:
    return add_constant(module, node, f"{node.name}_position", torch.tensor(list(places)))


_RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], Write | None]] = {
    aten.index_copy.default: _index_copy,
    aten.index_put.default: _index_put,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
}

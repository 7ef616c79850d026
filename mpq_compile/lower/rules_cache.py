"""Writes into a cache: in place where the cache is an input that is given back changed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import fx

from mpq_compile.kernels.elementwise_workload import WriteRowsWorkload
from mpq_compile.lower.emit import Value
from mpq_compile.lower.views import View, dense
from mpq_compile.passes.base import only_user

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def write_rows(lowering: Lowering, node: fx.Node) -> Value:
    """Call the kernel of ``ops.write_rows``."""
    cache, rows, position = (lowering.value(operand) for operand in node.args[:3])
    axis: Any = node.args[3]
    axis %= len(cache.shape)
    outer, inner = math.prod(cache.shape[:axis]), math.prod(cache.shape[axis + 1 :])
    view = _rows_view(lowering, rows, (outer, rows.shape[axis], inner))
    updated = _updated_input(node)
    workload = WriteRowsWorkload(
        outer=outer,
        size=cache.shape[axis],
        rows=rows.shape[axis],
        inner=inner,
        source_size=view.size,
        source_offset=view.offset,
        source_strides=view.strides[:2],  # type: ignore[arg-type]
        in_place=updated is not None,
    )
    arguments = [view.var, position.var, lowering.emitter.logical(cache).var]
    lowering.kernel_of[node.name] = workload.key
    if updated is None:
        return lowering.emitter.kernel(workload, arguments, cache.shape, cache.fmt, False)
    lowering.updates[updated[0]] = updated[1]
    return lowering.emitter.kernel_in_place(workload, arguments, cache)


def _rows_view(lowering: Lowering, rows: Value, shape: tuple[int, int, int]) -> View:
    """Return where the rows lie; their copy where the elements of one are not side by side."""
    view = rows.view.reshaped(shape)
    if view is not None and (shape[2] == 1 or view.strides[2] == 1):
        return view
    return dense(lowering.emitter.logical(rows).var, shape)


def _updated_input(node: fx.Node) -> tuple[int, int] | None:
    """Return (output, input) where ``node`` is an output and alone reads an input as its cache."""
    cache = node.args[0]
    if not isinstance(cache, fx.Node) or cache.op != "placeholder":
        return None
    alone: Any = only_user(cache)
    if alone is not node:
        return None
    if any(operand is cache for operand in node.args[1:]):
        return None
    graph: Any = node.graph
    output: Any = next(n for n in graph.nodes if n.op == "output")
    places = [place for place, value in enumerate(output.args[0]) if value is node]
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    return (places[0], inputs.index(cache)) if len(places) == 1 else None

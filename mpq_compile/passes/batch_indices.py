"""What depends on the size of the batch and on nothing else, as positions and masks do.

``x[samples, places]``, where ``samples`` number the batch, becomes a choice along one dimension:
that is how masks are looked up for each sample, by Transformers' code and by exporters (which
flatten ``x`` and count rows). A tensor whose rows are the same for each sample becomes a constant
of one row. Both are found by computing such tensors here, for several sizes of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, call, constant, is_call, replace

aten = torch.ops.aten
_MERGES = (aten.flatten.using_ints, aten.reshape.default, aten.view.default)
# Sizes that a free batch is tried with.
_BATCHES = (2, 3, 5)
# Positions and masks; what is looked up by positions stays a look-up, which may be a site.
_FOLDED = (torch.int64, torch.bool)


@dataclass(frozen=True, kw_only=True)
class BatchIndices:
    """Replace such look-ups, then such tensors where something else reads them."""

    name: str = "batch_indices"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, aten.index.Tensor):
                _pairs(module, node)
            elif is_call(node, aten.index_select.default):
                _rows(module, node)
        _same_rows(module)
        return module


def _pairs(module: fx.GraphModule, node: fx.Node) -> None:
    """``x[samples, places]``, both of one shape after broadcasting."""
    x, indices = node.args[:2]
    if _sizes(module, x) is None or not isinstance(indices, Sequence) or len(indices) != 2:
        return
    found = [_computed(module, indices, batch) for batch in _batches(x)]
    known = [torch.broadcast_tensors(*pair) for pair in found if pair is not None and _whole(pair)]
    if len(known) == len(found):
        _replace(module, node, x, [(samples, places) for samples, places in known])
    elif _numbers_batch(module, x, indices[0]):
        _one_each(module, node, x, indices[1])


def _numbers_batch(module: fx.GraphModule, x: fx.Node, samples: Any) -> bool:
    """Tell whether indices are 0, 1, … for each sample, along a first axis."""
    found = [_computed(module, [samples], batch) for batch in _batches(x)]
    return all(
        values is not None
        and len(values[0]) == batch
        and torch.equal(values[0].flatten(), torch.arange(batch))
        for values, batch in zip(found, _batches(x), strict=True)
    )


def _one_each(module: fx.GraphModule, node: fx.Node, x: fx.Node, places: Any) -> None:
    """``x[samples, places]`` with places for each sample that data tell: a token, or neighbours."""
    value = places.meta.get("val") if isinstance(places, fx.Node) else None
    sizes = _sizes(module, x)
    if not isinstance(value, Tensor) or sizes is None or value.dim() == 0:
        return
    own = value.shape[1:]
    if str(value.shape[0]) != str(x.meta["val"].shape[0]) or any(
        not isinstance(n, int) for n in own
    ):
        return
    if value.dtype != torch.int64:
        places = call(module, node, aten.to.dtype, places, torch.int64)
    # Places may count from the end.
    behind = call(module, node, aten.remainder.Scalar, places, sizes[0])
    count = math.prod(own)
    column = call(module, node, aten.reshape.default, behind, [-1, count, *[1] * (len(sizes) - 1)])
    wide = call(module, node, aten.expand.default, column, [-1, count, *sizes[1:]])
    chosen = call(module, node, aten.gather.default, x, 1, wide)
    replace(module, node, aten.reshape.default, (chosen, [-1, *own, *sizes[1:]]))


def _rows(module: fx.GraphModule, node: fx.Node) -> None:
    """``x.flatten(0, 1)[rows]``."""
    merged, dim, rows = node.args[:3]
    if dim != 0 or not is_call(merged, *_MERGES):
        return
    x = merged.args[0]
    sizes = _sizes(module, x)
    if sizes is None or merged.meta["val"].shape[1:] != x.meta["val"].shape[2:]:
        return
    found = []
    for batch in _batches(x):
        values = _computed(module, [rows], batch)
        if values is None or not _whole(values) or values[0].numel() % batch:
            return
        numbers = values[0].reshape(batch, -1)
        found.append((numbers // sizes[0], numbers % sizes[0]))
    _replace(module, node, x, found, rows=True)


def _whole(values: Sequence[Tensor]) -> bool:
    """Tell whether indices are integers; a mask picks as many as it has ones."""
    return all(value.dtype == torch.int64 for value in values)


def _sizes(module: fx.GraphModule, x: Any) -> list[int] | None:
    """Return the sizes of ``x`` behind the batch, where that comes first and the rest is fixed."""
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    if not isinstance(value, Tensor) or value.dim() < 2:
        return None
    if isinstance(value.shape[0], torch.SymInt) and str(value.shape[0]) != str(_batch(module)):
        return None
    after = list(value.shape[1:])
    return [int(size) for size in after] if all(isinstance(size, int) for size in after) else None


def _batches(x: fx.Node) -> Sequence[int]:
    size = x.meta["val"].shape[0]
    return _BATCHES if isinstance(size, torch.SymInt) else (int(size),)


def _replace(
    module: fx.GraphModule,
    node: fx.Node,
    x: fx.Node,
    found: Sequence[tuple[Tensor, Tensor]],
    rows: bool = False,
) -> None:
    """Choose places along dimension 1 where every sample reads itself, and the same of them."""
    places = found[0][1][:1]
    for (samples, chosen), batch in zip(found, _batches(x), strict=True):
        own = torch.arange(batch).reshape(-1, *[1] * (samples.dim() - 1))
        if samples.shape[0] != batch or not torch.equal(samples, own.expand_as(samples)):
            return
        if not torch.equal(chosen, places.expand_as(chosen)):
            return
    sizes = _sizes(module, x)
    assert sizes is not None
    flat = places.flatten()
    if flat.tolist() != list(range(sizes[0])):
        vector = add_constant(module, node, f"{node.name}_places", flat)
        with module.graph.inserting_before(node):
            chosen_node = module.graph.call_function(aten.index_select.default, (x, 1, vector))
        value = x.meta["val"]
        chosen_node.meta["val"] = value.new_empty((value.shape[0], len(flat), *sizes[1:]))
        x = chosen_node
    shape = [-1, *sizes[1:]] if rows else [-1, *places.shape[1:], *sizes[1:]]
    replace(module, node, aten.reshape.default, (x, shape))


def _same_rows(module: fx.GraphModule) -> None:
    """Put constants, expanded to the batch, where rows are the same for each sample."""
    alone = _batch_alone(module)
    whole_numbers = {node for node in alone if _is_folded(node)}
    for node in [n for n in alone if any(user not in whole_numbers for user in n.users)]:
        value = node.meta.get("val")
        if node not in whole_numbers or value.dim() == 0:
            continue
        done = is_call(node, aten.expand.default) and constant(module, node.args[0]) is not None
        if done or not isinstance(value.shape[0], torch.SymInt):
            continue
        found = [_computed(module, [node], batch) for batch in _BATCHES]
        row = found[0][0][:1] if found[0] is not None else None
        whole = [f is not None and len(f[0]) == b for f, b in zip(found, _BATCHES, strict=True)]
        if row is None or not all(whole):
            continue
        if all(f is not None and torch.equal(f[0], row.expand_as(f[0])) for f in found):
            constant_row = add_constant(module, node, f"{node.name}_row", row.contiguous())
            constant_row.meta["val"] = row.to("meta")
            sizes = [_batch_size(module, node), *[-1] * (row.dim() - 1)]
            replace(module, node, aten.expand.default, (constant_row, sizes))


def _is_folded(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype in _FOLDED


def _batch_alone(module: fx.GraphModule) -> dict[fx.Node, None]:
    """Return the nodes that are computed from the size of the batch, and from no data."""
    alone: dict[fx.Node, None] = {}
    known: set[fx.Node] = set()
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            known.add(node)
        elif _is_batch(node) or (
            node.op == "call_function"
            and any(n in alone for n in inputs)
            and all(n in alone or n in known for n in inputs)
        ):
            alone[node] = None
    return alone


def _batch(module: fx.GraphModule) -> Any:
    """Return the symbol of the batch, as the trace has it."""
    return _first_input(module).meta["val"].shape[0]


def _first_input(module: fx.GraphModule) -> fx.Node:
    return next(n for n in module.graph.nodes if n.op == "placeholder")


def _batch_size(module: fx.GraphModule, before: fx.Node) -> fx.Node:
    source = _first_input(module)
    with module.graph.inserting_before(before):
        size = module.graph.call_function(aten.sym_size.int, (source, 0))
    size.meta["val"] = source.meta["val"].shape[0]
    return size


def _computed(
    module: fx.GraphModule, nodes: Sequence[Any], batch: int
) -> tuple[Tensor, ...] | None:
    """Return the tensors that nodes compute for a size of the batch; None where data tell them."""
    order = _without_data(nodes)
    if order is None:
        return None
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in order:
            values[node] = _value(module, node, batch, values)
    found = tuple(values[node] for node in nodes)
    return found if all(isinstance(v, Tensor) and v.dtype in _FOLDED for v in found) else None


def _without_data(nodes: Sequence[Any]) -> list[fx.Node] | None:
    """Return what nodes are computed from, in order; None where an input's values are among it."""
    needed: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node.op not in ("call_function", "get_attr"):
            return None
        if node not in needed:
            needed.add(node)
            waiting += [] if _is_batch(node) else node.all_input_nodes
    return sorted(needed)


def _is_batch(node: fx.Node) -> bool:
    if not is_call(node, aten.sym_size.int):
        return False
    source, dim = node.args
    return isinstance(source, fx.Node) and source.op == "placeholder" and dim == 0


def _value(module: fx.GraphModule, node: fx.Node, batch: int, values: dict[fx.Node, Any]) -> Any:
    if _is_batch(node):
        return batch
    if node.op == "get_attr":
        return constant(module, node)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    return node.target(*args, **kwargs)

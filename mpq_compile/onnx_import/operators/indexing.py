"""Operators that pick values by position."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator, integers, number, tensor
from mpq_compile.onnx_import.program import Node


def gather(node: Node, x: Tensor, index: Known | Tensor) -> Tensor:
    """A known number selects; indices from data look a table up, as an embedding does."""
    axis = node.get("axis", 0)
    axis = axis + x.dim() if axis < 0 else axis
    place = number(index)
    if place is not None and isinstance(index, np.ndarray):
        return x.select(axis, int(place)) if index.ndim == 0 else _one(x, axis, int(place), index)
    chosen = tensor(index).long()
    if not isinstance(index, np.ndarray) and axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(chosen, x)
    size = x.shape[axis]
    flat = torch.where(chosen < 0, chosen + size, chosen).reshape(-1)
    picked = x.index_select(axis, flat)
    return picked.reshape(x.shape[:axis] + chosen.shape + x.shape[axis + 1 :])


def _one(x: Tensor, axis: int, place: int, index: Known) -> Tensor:
    picked = x.select(axis, place)
    return picked.reshape(x.shape[:axis] + index.shape + x.shape[axis + 1 :])


def _gather_known(node: Node, x: Known, index: Known) -> Known:
    return np.take(x, index.astype(np.int64), axis=node.get("axis", 0))


def gather_elements(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.get("axis", 0)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index).long())


def gather_nd(node: Node, x: Tensor, index: Tensor) -> Tensor:
    batch = node.get("batch_dims", 0)
    if batch == 0:
        return x[tuple(index.long().unbind(-1))]
    depth = index.shape[-1]
    lead = x.shape[:batch]
    rows = x.reshape(-1, *x.shape[batch:])
    places = index.reshape(rows.shape[0], -1, depth).long()
    first = torch.arange(rows.shape[0]).reshape(-1, 1).expand(places.shape[:2])
    picked = rows[(first, *places.unbind(-1))]
    return picked.reshape(*lead, *index.shape[batch:-1], *x.shape[batch + depth :])


def sliced(
    node: Node,
    x: Tensor,
    starts: Known,
    ends: Known,
    axes: Known | None = None,
    steps: Known | None = None,
) -> Tensor:
    for axis, start, end, step in _cuts(starts, ends, axes, steps):
        if step < 0:
            size = int(x.shape[axis])
            places = np.arange(size)[slice(*_backwards(start, end, step, size))]
            x = x.index_select(axis, torch.from_numpy(places.copy()))
        else:
            x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return x


def _backwards(start: int, end: int, step: int, size: int) -> tuple[int, int | None, int]:
    """An end before the first element is None in Python, where -1 would be the last one."""
    return start, None if end < -size else end, step


def _sliced_known(
    node: Node,
    x: Known,
    starts: Known,
    ends: Known,
    axes: Known | None = None,
    steps: Known | None = None,
) -> Known:
    cuts = [slice(None)] * x.ndim
    for axis, start, end, step in _cuts(starts, ends, axes, steps):
        if step < 0:
            cuts[axis] = slice(*_backwards(start, end, step, x.shape[axis]))
        else:
            cuts[axis] = slice(start, end, step)
    return x[tuple(cuts)]


def _cuts(
    starts: Known, ends: Known, axes: Known | None, steps: Known | None
) -> list[tuple[Any, ...]]:
    first, last = integers(starts), integers(ends)
    dims = list(range(len(first))) if axes is None else integers(axes)
    strides = [1] * len(first) if steps is None else integers(steps)
    return list(zip(dims, first, last, strides, strict=True))


def triangle(node: Node, x: Tensor, diagonal: Known | None = None) -> Tensor:
    place = 0 if diagonal is None else integers(diagonal)[0]
    return x.triu(place) if node.get("upper", 1) else x.tril(place)


def one_hot(node: Node, index: Tensor, depth: Known, values: Tensor) -> Tensor:
    count, axis = int(integers(depth)[0]), node.get("axis", -1)
    hot = torch.remainder(index.long(), count).unsqueeze(-1) == torch.arange(count)
    inside = ((index >= -count) & (index < count)).unsqueeze(-1)
    chosen = torch.where(hot & inside, values[1], values[0])
    return chosen.movedim(-1, axis if axis >= 0 else axis + chosen.dim())


def top_k(node: Node, x: Tensor, count: Known) -> tuple[Tensor, Tensor]:
    """Of equal values the first comes first."""
    axis, largest = node.get("axis", -1), bool(node.get("largest", 1))
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    size = integers(count)[0]
    return values.narrow(axis, 0, size), places.narrow(axis, 0, size)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis, reduction = node.get("axis", 0), node.get("reduction", "none")
    places = torch.where(index < 0, index + x.shape[axis], index).long()
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])


def scatter_nd(node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    reduction = node.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise node.unsupported(f"reduction {reduction!r}")
    places = tuple(index.long().unbind(-1))
    return x.index_put(places, updates, accumulate=reduction == "add")


INDEXING = {
    "Gather": Operator(function=gather, either=(1,), host=_gather_known),
    "GatherElements": Operator(function=gather_elements),
    "GatherND": Operator(function=gather_nd),
    "Slice": Operator(function=sliced, known=(1, 2, 3, 4), host=_sliced_known),
    "Trilu": Operator(function=triangle, known=(1,)),
    "OneHot": Operator(function=one_hot, known=(1,)),
    "TopK": Operator(function=top_k, known=(1,)),
    "ScatterElements": Operator(function=scatter_elements),
    "ScatterND": Operator(function=scatter_nd),
}

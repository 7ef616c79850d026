"""The problem as the checker sees it: padded arrays, edges by label. No solver's code is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpq_compile.solve.problem import Pair, Problem, limit_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Terms of two groups by label: loss (A, B), infinite where forbidden, and cost (D, A, B)."""

    loss: Floats
    cost: Floats

    def flipped(self) -> Edge:
        """Return the same terms seen from the other end."""
        return Edge(loss=self.loss.T, cost=self.cost.transpose(0, 2, 1))


@dataclass(frozen=True, kw_only=True)
class Terms:
    """G groups of at most C candidates, D budgets.

    Attributes:
        loss: (G, C), infinite where there is no candidate.
        cost: (D, G, C).
        limit: (D,) largest usage within the budget; a whole number where all costs are.
        label: (G, C) candidates of a group with one label are alike on every edge.
        labels: (G,) number of labels.
        edges: by (group, neighbour), each in both directions.
        whole: whether every loss is a whole number, on edges too.
    """

    axes: tuple[str, ...]
    loss: Floats
    cost: Floats
    limit: Floats
    label: Ints
    labels: Ints
    edges: Mapping[tuple[int, int], Edge]

    @property
    def paired(self) -> list[int]:
        """Groups with an edge, in order."""
        return sorted({a for a, _ in self.edges})

    @property
    def scale(self) -> Floats:
        """(D,) size of the sums of costs: what rounding errors are measured against."""
        return np.abs(self.cost).max(axis=2).sum(axis=1) + np.abs(self.limit)


def read_terms(problem: Problem) -> Terms:
    """Return the arrays of a problem."""
    axes, groups = tuple(problem.budget), problem.groups
    width = max(len(g.candidates) for g in groups)
    loss = np.full((len(groups), width), np.inf)
    cost = np.zeros((len(axes), len(groups), width))
    for i, group in enumerate(groups):
        for j, candidate in enumerate(group.candidates):
            loss[i, j] = candidate.loss
            for d, axis in enumerate(axes):
                cost[d, i, j] = candidate.costs[axis]
    dense = _dense_edges(problem, axes)
    label = np.zeros(loss.shape, dtype=np.int64)
    for g in {a for a, _ in dense}:
        rows = [e for (a, _), e in dense.items() if a == g]
        label[g, : rows[0].loss.shape[0]] = _labels(rows)
    edges = {(a, b): _by_label(edge, label[a], label[b]) for (a, b), edge in dense.items()}
    return Terms(
        axes=axes,
        loss=loss,
        cost=cost,
        limit=_limits(problem, cost, [e.cost for e in dense.values()]),
        label=label,
        labels=label.max(axis=1) + 1,
        edges=edges,
    )


def _limits(problem: Problem, cost: Floats, joint: list[Floats]) -> Floats:
    limits = [limit_of(bound) for bound in problem.budget.values()]
    whole = [
        all(bool(np.all(part[d] == np.floor(part[d]))) for part in [cost, *joint])
        for d in range(len(limits))
    ]
    rounded = [math.floor(x) if w else x for x, w in zip(limits, whole, strict=True)]
    return np.array(rounded, dtype=float)


def _dense_edges(problem: Problem, axes: tuple[str, ...]) -> dict[tuple[int, int], Edge]:
    index = {g.name: i for i, g in enumerate(problem.groups)}
    edges: dict[tuple[int, int], Edge] = {}
    for pair in problem.pairs:
        a, b = index[pair.a], index[pair.b]
        shape = (len(problem.groups[a].candidates), len(problem.groups[b].candidates))
        edge = _edge(pair, axes, shape)
        old = edges.get((a, b))
        if old is not None:
            edge = Edge(loss=old.loss + edge.loss, cost=old.cost + edge.cost)
        edges[a, b], edges[b, a] = edge, edge.flipped()
    return edges


def _edge(pair: Pair, axes: tuple[str, ...], shape: tuple[int, int]) -> Edge:
    loss, cost = np.zeros(shape), np.zeros((len(axes), *shape))
    if pair.loss is not None:
        loss += _entries(pair.loss)
    for axis, matrix in pair.costs.items():
        entries = _entries(matrix)
        loss[np.isinf(entries)] = np.inf
        if axis in axes:
            cost[axes.index(axis)] = np.where(np.isinf(entries), 0.0, entries)
    return Edge(loss=loss, cost=cost)


def _entries(matrix: object) -> Floats:
    """Return a matrix as an array, infinite where a combination is forbidden."""
    values = np.array(matrix, dtype=float)
    return np.where(np.isnan(values), np.inf, values)


def _labels(rows: list[Edge]) -> Ints:
    """Number the distinct rows of a group's edges."""
    flat = np.concatenate(
        [
            np.concatenate([e.loss[None], e.cost]).swapaxes(0, 1).reshape(len(e.loss), -1)
            for e in rows
        ],
        axis=1,
    )
    return np.unique(flat, axis=0, return_inverse=True)[1].ravel()


def _by_label(edge: Edge, rows: Ints, columns: Ints) -> Edge:
    a = np.unique(rows[: edge.loss.shape[0]], return_index=True)[1]
    b = np.unique(columns[: edge.loss.shape[1]], return_index=True)[1]
    return Edge(loss=edge.loss[np.ix_(a, b)], cost=edge.cost[:, a][:, :, b])

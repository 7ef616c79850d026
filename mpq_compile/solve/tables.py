"""The problem as arrays. Candidates of a group whose pair rows are equal share one class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpq_compile.solve.problem import Pair, Problem, limit_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Sums of float64 are taken to be off by at most this share of the sum of magnitudes.
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """Pair terms of groups a < b by class: loss (A, B), cost (D, A, B), forbidden (A, B)."""

    a: int
    b: int
    loss: Floats
    cost: Floats
    forbidden: Bools

    def transposed(self) -> PairTable:
        """Return the same terms with b's classes as rows."""
        return PairTable(
            a=self.b,
            b=self.a,
            loss=self.loss.T,
            cost=self.cost.transpose(0, 2, 1),
            forbidden=self.forbidden.T,
        )


@dataclass(frozen=True, kw_only=True)
class Tables:
    """G groups of at most C candidates, D budgeted axes; what is absent is not ``allowed``.

    Attributes:
        loss: (G, C), zero where absent.
        cost: (D, G, C), zero where absent.
        limit: (D,) largest usage within the budget, its tolerance included; rounded down where
            all costs of the axis are whole numbers.
        scale: (D,) largest magnitude of sums of costs: what rounding errors are measured against.
        allowed: (G, C) candidates that may still be chosen.
        classes: (G, C) class of each candidate; two of one class are alike in every pair.
        class_count: (G,).
        pairs: at most one for every two groups.
    """

    axes: tuple[str, ...]
    loss: Floats
    cost: Floats
    limit: Floats
    scale: Floats
    allowed: Bools
    classes: Ints
    class_count: Ints
    pairs: tuple[PairTable, ...]

    @cached_property
    def open_loss(self) -> Floats:
        """(G, C) loss, infinite where not allowed."""
        return np.where(self.allowed, self.loss, np.inf)

    def allowing(self, allowed: Bools) -> Tables:
        """Return the tables with fewer candidates."""
        return replace(self, allowed=allowed)

    def paired(self) -> list[int]:
        """Return the groups that occur in a pair, in order."""
        return sorted({g for p in self.pairs for g in (p.a, p.b)})

    def worth(self, choice: Ints) -> tuple[float, Floats]:
        """Return (loss, usage) of one candidate index per group; infinite loss if forbidden."""
        rows = np.arange(len(choice))
        loss = float(self.loss[rows, choice].sum())
        usage = self.cost[:, rows, choice].sum(axis=1)
        classes = self.classes[rows, choice]
        for pair in self.pairs:
            i, j = classes[pair.a], classes[pair.b]
            loss += np.inf if pair.forbidden[i, j] else pair.loss[i, j]
            usage = usage + pair.cost[:, i, j]
        return float(loss), usage

    def fits(self, choice: Ints) -> bool:
        """Return whether the usage, summed without rounding error, is within the limits."""
        rows = np.arange(len(choice))
        classes = self.classes[rows, choice]
        joint = [p.cost[:, classes[p.a], classes[p.b]] for p in self.pairs]
        terms = np.concatenate([self.cost[:, rows, choice].T, *(j[None] for j in joint)])
        return all(math.fsum(terms[:, d]) <= limit for d, limit in enumerate(self.limit.tolist()))


@dataclass(frozen=True, kw_only=True)
class Incumbent:
    """The best assignment known: candidate index per group (G,), and its loss."""

    choice: Ints
    loss: float


def build_tables(problem: Problem) -> Tables:
    """Turn a problem into arrays; only the budgeted axes are kept."""
    axes = tuple(problem.budget)
    width = max(len(g.candidates) for g in problem.groups)
    loss = np.zeros((len(problem.groups), width))
    cost = np.zeros((len(axes), *loss.shape))
    allowed = np.zeros(loss.shape, dtype=bool)
    for g, group in enumerate(problem.groups):
        count = len(group.candidates)
        allowed[g, :count] = True
        loss[g, :count] = [c.loss for c in group.candidates]
        for d, axis in enumerate(axes):
            cost[d, g, :count] = [c.costs[axis] for c in group.candidates]
    dense = _dense_pairs(problem, axes)
    classes = _classes(dense, allowed)
    limit = _limits(problem, axes, cost, dense)
    return Tables(
        axes=axes,
        loss=loss,
        cost=cost,
        limit=limit,
        scale=np.abs(cost).max(axis=2).sum(axis=1) + np.abs(limit),
        allowed=allowed,
        classes=classes,
        class_count=classes.max(axis=1) + 1,
        pairs=tuple(_by_class(a, b, block, classes) for (a, b), block in sorted(dense.items())),
    )


def _limits(
    problem: Problem, axes: tuple[str, ...], cost: Floats, dense: Mapping[tuple[int, int], Floats]
) -> Floats:
    limit = np.array([limit_of(problem.budget[a]) for a in axes], dtype=float)
    for d in range(len(axes)):
        terms = [cost[d], *(block[2 + d] for block in dense.values())]
        if all((t == np.rint(t)).all() for t in terms):
            limit[d] = np.floor(limit[d])
    return limit


def _dense_pairs(problem: Problem, axes: tuple[str, ...]) -> dict[tuple[int, int], Floats]:
    """Return for each two groups a block (2 + D, A, B): forbidden, loss, costs; parallels add."""
    index = {g.name: i for i, g in enumerate(problem.groups)}
    sizes = [len(g.candidates) for g in problem.groups]
    blocks: dict[tuple[int, int], Floats] = {}
    for pair in problem.pairs:
        a, b = index[pair.a], index[pair.b]
        block = _block(pair, axes, sizes[a], sizes[b])
        if a > b:
            a, b, block = b, a, block.transpose(0, 2, 1)
        blocks[a, b] = blocks[a, b] + block if (a, b) in blocks else block
    return {key: block for key, block in blocks.items() if block.any()}


def _block(pair: Pair, axes: tuple[str, ...], rows: int, columns: int) -> Floats:
    block = np.zeros((2 + len(axes), rows, columns))
    layers = [(2 + axes.index(a), m) for a, m in pair.costs.items() if a in axes]
    # A null forbids the combination on whatever axis it stands, budgeted or not.
    layers += [(0, m) for a, m in pair.costs.items() if a not in axes]
    if pair.loss is not None:
        layers.append((1, pair.loss))
    for layer, matrix in layers:
        values = np.array(matrix, dtype=float)
        missing = np.isnan(values)
        block[0] += missing
        if layer:
            block[layer] += np.where(missing, 0.0, values)
    block[1:, block[0] > 0] = 0.0
    return block


def _classes(dense: dict[tuple[int, int], Floats], allowed: Bools) -> Ints:
    """Number the distinct pair rows of each group in order of first appearance."""
    rows: dict[int, list[Floats]] = {}
    for (a, b), block in dense.items():
        rows.setdefault(a, []).append(block.transpose(1, 0, 2).reshape(block.shape[1], -1))
        rows.setdefault(b, []).append(block.transpose(2, 0, 1).reshape(block.shape[2], -1))
    classes = np.zeros(allowed.shape, dtype=np.int64)
    for g, parts in rows.items():
        seen: dict[bytes, int] = {}
        # Adding zero turns −0.0 into 0.0, which differs in its bytes only.
        for c, row in enumerate(np.concatenate(parts, axis=1) + 0.0):
            classes[g, c] = seen.setdefault(row.tobytes(), len(seen))
    return classes


def _by_class(a: int, b: int, block: Floats, classes: Ints) -> PairTable:
    rows = [int(np.argmax(classes[a] == k)) for k in range(classes[a].max() + 1)]
    columns = [int(np.argmax(classes[b] == k)) for k in range(classes[b].max() + 1)]
    small = block[:, rows][:, :, columns]
    forbidden = small[0] > 0
    small = np.where(forbidden, 0.0, small)
    return PairTable(a=a, b=b, loss=small[1], cost=small[2:], forbidden=forbidden)

"""A problem as particles see it: candidates ordered by cost, many assignments evaluated at once.

A *level* is a candidate's place in its group's order, from the cheapest to the most expensive, so
that one level up is "one bit more". Combinations that a pair forbids count on an axis of their
own, whose limit is zero: they are an excess like any other, which steps can reduce.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mpq_compile.solve.tables import Floats, Ints, Tables


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What each variable's step by one level changes: loss (P, G), usage (P, G, D + 1).

    Where there is no such level ``possible`` (P, G) is False.
    """

    loss: Floats
    usage: Floats
    possible: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Joint:
    """All N pairs in one padded array, for many assignments at once.

    Attributes:
        ends: (2, N) the groups of each pair.
        incidence: (2, N, G) one where a group is that end of a pair.
        terms: (1 + D + 1, N, K, K) loss, costs and whether forbidden, by the classes of both ends.
    """

    ends: Ints
    incidence: Floats
    terms: Floats


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """G variables with ``counts`` levels each, under D budgets.

    Args:
        tables: The problem's arrays, candidates in the order of levels.
        order: (G, C) candidate at each level.
    """

    tables: Tables
    order: Ints

    @cached_property
    def counts(self) -> Ints:
        """(G,) number of levels."""
        return self.tables.allowed.sum(axis=1)

    @cached_property
    def limit(self) -> Floats:
        """(D + 1,) largest usage within the budget; of forbidden combinations none."""
        return np.append(self.tables.limit, 0.0)

    @cached_property
    def spread(self) -> Floats:
        """(D + 1,) most that the usage of an axis can differ by; what an excess is measured in."""
        spread = np.ptp(self.tables.cost, axis=2).sum(axis=1)
        return np.append(np.where(spread > 0, spread, 1.0), 1.0)

    def choice(self, levels: Ints) -> Ints:
        """Return the candidate indices (…, G) of levels (…, G)."""
        return self.order[np.arange(len(self.counts)), levels]

    def levels(self, choice: Ints) -> Ints:
        """Return the levels (G,) of candidate indices (G,)."""
        return np.argmax(self.order == choice[:, None], axis=1)

    def worth(self, levels: Ints) -> tuple[Floats, Floats]:
        """Return loss (P,) and usage (P, D + 1) of levels (P, G)."""
        rows = np.arange(len(self.counts))
        loss = self.tables.loss[rows, levels].sum(axis=1)
        usage = np.zeros((len(levels), len(self.limit)))
        usage[:, :-1] = self.tables.cost[:, rows, levels].sum(axis=2).T
        if self.tables.pairs:
            ends = self.joint.ends
            joint = self._terms(*(self.tables.classes[e, levels[:, e]] for e in ends)).sum(axis=2)
            loss += joint[0]
            usage += joint[1:].T
        return loss, usage

    @cached_property
    def joint(self) -> Joint:
        """The pairs as arrays."""
        pairs, size = self.tables.pairs, int(self.tables.class_count.max())
        ends = np.array([[p.a for p in pairs], [p.b for p in pairs]], dtype=np.int64)
        terms = np.zeros((1 + len(self.limit), len(pairs), size, size))
        for n, pair in enumerate(pairs):
            rows, columns = pair.loss.shape
            terms[0, n, :rows, :columns] = pair.loss
            terms[1:-1, n, :rows, :columns] = pair.cost
            terms[-1, n, :rows, :columns] = pair.forbidden
        return Joint(ends=ends, incidence=np.eye(len(self.counts))[ends], terms=terms)

    def _terms(self, a: Ints, b: Ints) -> Floats:
        """Return each pair's terms (1 + D + 1, P, N) at classes (P, N) of its ends."""
        return self.joint.terms[:, np.arange(a.shape[1]), a, b]

    def excess(self, usage: Floats) -> Floats:
        """Return how far usage (P, D + 1) is beyond the limit, in parts of the spread."""
        return np.maximum(usage - self.limit, 0.0) / self.spread

    def steps(self, levels: Ints, by: int) -> Steps:
        """Return what one level more (``by`` = 1) or less (−1) changes for each variable."""
        rows = np.arange(len(self.counts))
        to = levels + by
        possible = (to >= 0) & (to < self.counts)
        to = np.where(possible, to, levels)
        loss = self.tables.loss[rows, to] - self.tables.loss[rows, levels]
        usage = np.zeros((*levels.shape, len(self.limit)))
        changed = self.tables.cost[:, rows, to] - self.tables.cost[:, rows, levels]
        usage[..., :-1] = changed.transpose(1, 2, 0)
        if self.tables.pairs:
            joint = self._joint_steps(levels, to)
            loss += joint[0]
            usage += joint[1:].transpose(1, 2, 0)
        return Steps(loss=loss, usage=usage, possible=possible)

    def _joint_steps(self, levels: Ints, to: Ints) -> Floats:
        """Return what the pairs add to each step: (1 + D + 1, P, G)."""
        ends, classes = self.joint.ends, self.tables.classes
        a, b = (classes[e, levels[:, e]] for e in ends)
        now = self._terms(a, b)
        first = self._terms(classes[ends[0], to[:, ends[0]]], b) - now
        second = self._terms(a, classes[ends[1], to[:, ends[1]]]) - now
        return first @ self.joint.incidence[0] + second @ self.joint.incidence[1]

    def with_loss(self, loss: Floats) -> Landscape:
        """Return the same budgets under an estimate (G, C) of the loss at each level."""
        pairs = tuple(replace(p, loss=np.zeros_like(p.loss)) for p in self.tables.pairs)
        return replace(self, tables=replace(self.tables, loss=loss, pairs=pairs))


def build_landscape(tables: Tables, price: Floats) -> Landscape:
    """Order each group's allowed candidates by price·cost, of equal ones the greater loss first."""
    paid = np.tensordot(price, tables.cost, axes=1)
    last = ~tables.allowed
    order = np.lexsort((-tables.loss, paid, last), axis=1)
    rows = np.arange(len(order))[:, None]
    ordered = replace(
        tables,
        loss=tables.loss[rows, order],
        cost=tables.cost[:, rows, order],
        allowed=tables.allowed[rows, order],
        classes=tables.classes[rows, order],
    )
    return Landscape(tables=ordered, order=order)

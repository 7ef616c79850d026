"""Bounds that integers lift: losses of whole numbers leave gaps that no assignment can hit.

Let every value of loss(x) + μ·usage(x) lie on a lattice base + step·ℤ, for some 0 ≤ μ ≤ λ. Within
the budget, loss(x) + μ·usage(x) ≥ D(λ) + μ·limit, which may be rounded up to the lattice, and so

    loss(x) ≥ ⌈D(λ) + μ·limit⌉ − μ·limit.

μ = 0 is the rounding of a bound on whole losses (the strengthening of Gomory 1958 in its simplest
form); μ = 1 on one axis closes knapsacks whose losses follow their costs but for multiples of a
constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.lagrangian import Dual
from mpq_compile.solve.tables import ROUNDING, Floats, Tables

# Beyond this float64 does not hold every whole number.
EXACT = 2.0**53


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """loss + weight·usage takes values base + step·ℤ only. weight: (D,), whole numbers."""

    weight: Floats
    base: float
    step: float

    def lift(self, tables: Tables, dual: Dual) -> float:
        """Return the bound that follows from the dual's by rounding up to the lattice."""
        spent = float(self.weight @ tables.limit)
        least = dual.bound + spent
        slack = ROUNDING * (abs(dual.bound) + abs(spent) + float(dual.price @ tables.scale))
        return self.above(least, slack) - spent

    def above(self, value: float, rounding: float) -> float:
        """Return the least value of the lattice that is not below ``value`` less ``rounding``."""
        return self.base + math.ceil((value - self.base - rounding) / self.step) * self.step


def lattices(tables: Tables, price: Floats) -> list[Lattice]:
    """Return the lattices for μ = 0 and, where λ allows, for μ = 1 on one axis."""
    if not _whole(tables.loss, *(p.loss for p in tables.pairs)):
        return []
    weights = [np.zeros(len(tables.axes))]
    for d in range(len(tables.axes)):
        if price[d] >= 1 and _whole(tables.cost[d], *(p.cost[d] for p in tables.pairs)):
            weights.append(np.eye(len(tables.axes))[d])
    found = (_lattice(tables, weight) for weight in weights)
    return [lattice for lattice in found if lattice is not None]


def best_lift(tables: Tables, dual: Dual) -> float:
    """Return the best bound that the dual and the lattices give."""
    lifted = [lattice.lift(tables, dual) for lattice in lattices(tables, dual.price)]
    return max([dual.bound, *lifted])


def _whole(*values: Floats) -> bool:
    return all(bool((v == np.rint(v)).all()) and np.abs(v).sum() < EXACT for v in values)


def _lattice(tables: Tables, weight: Floats) -> Lattice | None:
    terms = tables.loss + np.tensordot(weight, tables.cost, axes=1)
    first = terms[np.arange(len(terms)), tables.allowed.argmax(axis=1)]
    base = float(first.sum())
    steps = np.where(tables.allowed, terms - first[:, None], 0.0).ravel()
    for pair in tables.pairs:
        joint = pair.loss + np.tensordot(weight, pair.cost, axes=1)
        steps = np.append(steps, joint.ravel())
    step = int(np.gcd.reduce(np.abs(steps).astype(np.int64)))
    # With a step of 0 there is one value only, and the dual finds it.
    return Lattice(weight=weight, base=base, step=float(step)) if step else None

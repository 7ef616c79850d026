"""The Lagrangian bound, computed anew.

    D(λ) = min_x [ w·loss(x) + Σ_axis λ_axis·(usage_axis(x) − limit_axis) ]

Groups without pairs are minimised one by one. The others are eliminated one after another, fewest
neighbours first, each leaving a table over its neighbours. Where tables would be too large, the
certificate has messages (:mod:`.messages`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.certificate.terms import Edge, Floats, Terms

# Entries that a table may have.
TABLE = 2**16
EXACT = 2.0**53


@dataclass(frozen=True, kw_only=True)
class Step:
    """Elimination of ``group``, which leaves a table over ``scope``; ``parent`` goes next of it."""

    group: int
    scope: tuple[int, ...]
    parent: int


def plan_steps(terms: Terms) -> list[Step] | None:
    """Return the order of elimination of the paired groups, None where a table is too large."""
    near: dict[int, set[int]] = {g: set() for g in terms.paired}
    for a, b in terms.edges:
        near[a].add(b)
    order: list[tuple[int, set[int]]] = []
    while near:
        g = min(near, key=lambda v: (_size(terms, near[v]), v))
        scope = near.pop(g)
        if _size(terms, scope | {g}) > TABLE:
            return None
        for v in scope:
            near[v] |= scope - {v}
            near[v].discard(g)
        order.append((g, scope))
    place = {g: k for k, (g, _) in enumerate(order)}
    return [
        Step(
            group=g,
            # The one eliminated first stands last: its table takes this one up.
            scope=tuple(sorted(scope, key=lambda v: -place[v])),
            parent=min(scope, key=place.__getitem__, default=-1),
        )
        for g, scope in order
    ]


def _size(terms: Terms, scope: set[int]) -> float:
    return math.prod(float(terms.labels[v]) for v in scope)


def singles(terms: Terms, weight: float, price: Floats) -> Floats:
    """(G, C) weight·loss + price·cost, infinite where there is no candidate."""
    loss = weight * terms.loss if weight else np.where(np.isinf(terms.loss), np.inf, 0.0)
    return loss + np.tensordot(price, terms.cost, axes=1)


def tables(terms: Terms, steps: list[Step], weight: float, price: Floats) -> dict[int, Floats]:
    """Return for each eliminated group its table over the labels of its scope."""
    alone = singles(terms, weight, price)
    left: dict[int, Floats] = {}
    children: dict[int, list[Step]] = {}
    for step in steps:
        children.setdefault(step.parent, []).append(step)
    for step in steps:
        g = step.group
        axes = (*step.scope, g)
        values = [np.min(alone[g][terms.label[g] == k]) for k in range(int(terms.labels[g]))]
        joint = np.array(values).reshape([1] * len(step.scope) + [-1])
        for k, v in enumerate(step.scope):
            if (v, g) in terms.edges:
                edge = weighed(terms.edges[v, g], weight, price)
                joint = joint + edge.reshape(_shape(edge, (k, len(step.scope)), len(axes)))
        for child in children.get(g, ()):
            table = left[child.group]
            places = tuple(axes.index(v) for v in child.scope)
            joint = joint + table.reshape(_shape(table, places, len(axes)))
        left[g] = joint.min(axis=-1)
    return left


def weighed(edge: Edge, weight: float, price: Floats) -> Floats:
    """Return weight·loss + price·cost of an edge, infinite where forbidden."""
    loss = weight * edge.loss if weight else np.where(np.isinf(edge.loss), np.inf, 0.0)
    return loss + np.tensordot(price, edge.cost, axes=1)


def _shape(table: Floats, places: tuple[int, ...], count: int) -> list[int]:
    """Return the shape that puts a table's axes at ``places``, which rise, among ``count``."""
    shape = [1] * count
    for size, place in zip(table.shape, places, strict=True):
        shape[place] = size
    return shape


def least(terms: Terms, steps: list[Step], weight: float, price: Floats) -> float:
    """Return the minimum of weight·loss + price·(usage − limit) over all assignments."""
    alone = singles(terms, weight, price)
    left = tables(terms, steps, weight, price)
    roots = [float(left[s.group]) for s in steps if s.parent < 0]
    free = np.delete(alone, terms.paired, axis=0).min(axis=1)
    return float(free.sum()) + math.fsum(roots) - float(price @ terms.limit)


def lifted(terms: Terms, price: Floats, bound: float) -> tuple[float, float]:
    """Return the bound after rounding up, and the step of whole losses (0 where there is none).

    Where loss + μ·usage takes only values base + step·ℤ for μ ≤ λ, then within the budget
    loss ≥ ⌈bound + μ·limit⌉ − μ·limit, the rounding being to those values. Tried: μ = 0, and
    μ = 1 on each axis.
    """
    best, whole = bound, 0.0
    size = abs(bound) + float(price @ terms.scale)
    for d in range(-1, len(terms.axes)):
        weight = np.zeros(len(terms.axes))
        if d >= 0:
            weight[d] = 1.0
            if price[d] < 1:
                continue
        base, step = _lattice(terms, weight)
        if not step:
            continue
        spent = float(weight @ terms.limit)
        steps = math.ceil((bound + spent - base - 1e-12 * (size + abs(spent))) / step)
        best = max(best, base + steps * step - spent)
        whole = step if d < 0 else whole
    return best, whole


def _lattice(terms: Terms, weight: Floats) -> tuple[float, float]:
    """Return base and step of the values that loss + weight·usage can take; step 0 if any."""
    values = terms.loss + np.tensordot(weight, terms.cost, axes=1)
    there = np.isfinite(terms.loss)
    first = values[:, :1]
    parts = [np.where(there, values - first, 0.0), first]
    for (a, b), edge in terms.edges.items():
        if a < b:
            joint = edge.loss + np.tensordot(weight, edge.cost, axes=1)
            parts.append(joint[np.isfinite(edge.loss)])
    flat = np.concatenate([p.ravel() for p in parts])
    if np.any(flat != np.floor(flat)) or np.abs(flat).sum() > EXACT:
        return 0.0, 0.0
    steps = np.concatenate([p.ravel() for p in (parts[0], *parts[2:])])
    return float(first.sum()), float(np.gcd.reduce(np.abs(steps).astype(np.int64)))

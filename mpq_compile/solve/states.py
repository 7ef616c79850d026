"""Non-dominated (cost, loss) pairs of a separable problem under one budget.

The dynamic program (Nemhauser & Ullmann 1969) takes the groups one by one: every kept state of the
groups so far, extended by every candidate of the next, sorted by cost; a state stays where its loss
is below that of all cheaper ones. Exact for costs and losses of any kind, negative ones too. On the
convex hull the points follow from sorting the slopes of the groups' own hulls (Sinha & Zoltners
1979), without any search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.dominance import drop_dominated, lower_hull
from mpq_compile.solve.tables import Floats, Ints, Tables

# States of all layers together: they are kept to trace assignments back.
MAX_KEPT = 4_000_000
_ROUNDING = 1e-14


@dataclass(frozen=True, kw_only=True)
class Steps:
    """P points by ascending cost: choice (P, G), cost (P,), loss (P,)."""

    choice: Ints
    cost: Floats
    loss: Floats


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """States after one more group, and where each came from."""

    cost: Floats
    loss: Floats
    parent: Ints
    candidate: Ints


def staircase(tables: Tables, max_states: int) -> Steps | None:
    """Return every non-dominated point within the limit of ``tables``' one axis.

    Returns:
        None where a layer would hold more than ``max_states`` states, or all more than MAX_KEPT.
    """
    cost, allowed = tables.cost[0], drop_dominated(tables)
    count = len(cost)
    least = np.where(allowed, cost, np.inf).min(axis=1)
    # What the groups after each layer cost at least; nothing above the limit is carried on.
    rest = np.append(np.cumsum(least[::-1])[::-1], 0.0)[1:]
    scale = np.abs(cost).max(axis=1).sum(), np.abs(tables.loss).max(axis=1).sum()
    tolerance = _ROUNDING * scale[0], _ROUNDING * scale[1]
    zero = np.zeros(1)
    layer = _Layer(cost=zero, loss=zero, parent=zero.astype(int), candidate=zero.astype(int))
    layers: list[_Layer] = []
    kept = 0
    for g in range(count):
        room = tables.limit[0] - rest[g] + tolerance[0]
        layer = _extended(tables, layer, g, np.flatnonzero(allowed[g]), room, tolerance)
        kept += len(layer.cost)
        if len(layer.cost) > max_states or kept > MAX_KEPT:
            return None
        layers.append(layer)
    return Steps(choice=_traced(layers), cost=layer.cost, loss=layer.loss)


def _extended(
    tables: Tables,
    layer: _Layer,
    group: int,
    candidates: Ints,
    room: float,
    tolerance: tuple[float, float],
) -> _Layer:
    """Add a group to every state; keep what fits and no other beats."""
    cost = (layer.cost[:, None] + tables.cost[0, group, candidates]).ravel()
    loss = (layer.loss[:, None] + tables.loss[group, candidates]).ravel()
    fitting = np.flatnonzero(cost <= room)
    order = fitting[np.lexsort((loss[fitting], cost[fitting]))]
    order = order[_falling(loss[order], tolerance[1])]
    order = order[_apart(cost[order], tolerance[0])]
    return _Layer(
        cost=cost[order],
        loss=loss[order],
        parent=(order // len(candidates)).astype(np.int32),
        candidate=candidates[order % len(candidates)].astype(np.int16),
    )


def _falling(loss: Floats, tolerance: float) -> Ints:
    """Return the places where the loss is below all before, by more than rounding."""
    if not len(loss):
        return np.arange(0)
    least = np.minimum.accumulate(loss)
    return np.flatnonzero(np.append(True, loss[1:] < least[:-1] - tolerance))


def _apart(cost: Floats, tolerance: float) -> Ints:
    """Return the places whose next neighbour costs more by more than rounding."""
    return np.flatnonzero(np.append(np.diff(cost) > tolerance, True)) if len(cost) else np.arange(0)


def _traced(layers: list[_Layer]) -> Ints:
    """Return (P, G) the candidates that lead to each state of the last layer."""
    choice = np.empty((len(layers[-1].cost), len(layers)), dtype=np.int64)
    state = np.arange(len(layers[-1].cost))
    for g in range(len(layers) - 1, -1, -1):
        choice[:, g] = layers[g].candidate[state]
        state = layers[g].parent[state]
    return choice


def spread_supported(tables: Tables, count: int) -> Steps:
    """Return at most ``count`` points on the convex hull within the limit, spread over the cost.

    Each minimises loss + λ·cost for some λ ≥ 0, so each is optimal for the budget that it uses.
    """
    hulls = [_hull(tables, g) for g in range(len(tables.loss))]
    start = np.array([hull[0] for hull in hulls])
    steps = [
        (g, a, b) for g, hull in enumerate(hulls) for a, b in zip(hull, hull[1:], strict=False)
    ]
    rows = np.array(steps, dtype=np.int64).reshape(-1, 3)
    rise = tables.cost[0, rows[:, 0], rows[:, 2]] - tables.cost[0, rows[:, 0], rows[:, 1]]
    fall = tables.loss[rows[:, 0], rows[:, 1]] - tables.loss[rows[:, 0], rows[:, 2]]
    # Stable, so that the steps of one group keep their order where slopes are equal.
    order = np.argsort(-fall / rise, kind="stable")
    groups = np.arange(len(start))
    cost = np.append(0.0, np.cumsum(rise[order])) + tables.cost[0, groups, start].sum()
    loss = np.append(0.0, -np.cumsum(fall[order])) + tables.loss[groups, start].sum()
    wanted = _spread(cost, np.flatnonzero(cost <= tables.limit[0]), count)
    choice = np.array([_after(start, rows[order[:taken]]) for taken in wanted], dtype=np.int64)
    return Steps(choice=choice.reshape(-1, len(start)), cost=cost[wanted], loss=loss[wanted])


def _hull(tables: Tables, group: int) -> list[int]:
    own = np.flatnonzero(tables.allowed[group])
    return [int(own[i]) for i in lower_hull(tables.cost[0, group, own], tables.loss[group, own])]


def _spread(cost: Floats, places: Ints, count: int) -> Ints:
    """Return at most ``count`` of ``places``: those nearest to evenly spaced costs."""
    if len(places) <= count:
        return places
    wanted = np.linspace(cost[places[0]], cost[places[-1]], count)
    return places[np.unique(np.searchsorted(cost[places], wanted).clip(0, len(places) - 1))]


def _after(start: Ints, steps: Ints) -> Ints:
    """Return the candidates after some steps of the hull; later steps of a group come later."""
    choice = start.copy()
    choice[steps[:, 0]] = steps[:, 2]
    return choice

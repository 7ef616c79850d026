"""Candidates and partial assignments that no best answer needs.

A candidate is dominated where another of its group has no more loss and no more cost on any axis;
with pair terms, also in every pair row. It is LP-dominated where it lies above the lower convex
hull of its group's (cost, loss) points: then only the linear relaxation can do without it
(Sinha & Zoltners 1979; Kellerer, Pferschy & Pisinger 2004, section 11.2).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mpq_compile.solve.tables import Bools, Floats, Ints, Tables

# Dominance among states under several budgets is tested against this many neighbours.
NEIGHBOURS = 24
# Comparisons of candidates made at once: what (groups, C, C) arrays of truth values may take.
BLOCK = 2**22


class States(Protocol):
    """What dominance needs to know of partial assignments."""

    @property
    def choice(self) -> Ints: ...
    @property
    def loss(self) -> Floats: ...
    @property
    def usage(self) -> Floats: ...


def drop_dominated(tables: Tables) -> Bools:
    """Return (G, C) ``allowed`` without the dominated candidates.

    A candidate goes only for one that is strictly better in loss, or equal and earlier, so that
    ties are still broken by candidate order.
    """
    count, width = tables.loss.shape
    rows = max(1, BLOCK // width**2)
    kept = [_undominated(tables, slice(g, g + rows)) for g in range(0, count, rows)]
    kept_by_rows = np.concatenate(kept)
    if tables.pairs:
        paired = tables.paired()
        kept_by_rows[paired] = _undominated(tables, paired, _rows_no_worse(tables)[paired])
    return kept_by_rows


def _undominated(tables: Tables, rows: slice | list[int], no_worse: Bools | None = None) -> Bools:
    """Return ``allowed`` of some groups without what is dominated among (also) ``no_worse``."""
    loss, cost, allowed = tables.loss[rows], tables.cost[:, rows], tables.allowed[rows]
    beats: Bools = np.all(cost[:, :, :, None] <= cost[:, :, None, :], axis=0)
    earlier = np.triu(np.ones(loss.shape[1:] * 2, dtype=bool), 1)
    equal = loss[:, :, None] == loss[:, None, :]
    beats &= (loss[:, :, None] < loss[:, None, :]) | (equal & earlier)
    beats &= allowed[:, :, None]
    if no_worse is not None:
        beats &= no_worse
    return allowed & ~beats.any(axis=1)


def _rows_no_worse(tables: Tables) -> Bools:
    """(G, C, C): whether candidate i's pair rows are nowhere above those of candidate j."""
    count, width = tables.loss.shape
    better = np.ones((count, width, width), dtype=bool)
    for pair in tables.pairs:
        for side in (pair, pair.transposed()):
            block = np.concatenate([side.loss[None], side.cost])
            low, high = block.copy(), block.copy()
            low[:, side.forbidden], high[:, side.forbidden] = np.inf, np.inf
            rows: Bools = np.all(low[:, :, None, :] <= high[:, None, :, :], axis=(0, 3))
            classes = tables.classes[side.a]
            better[side.a] &= rows[classes[:, None], classes[None, :]]
    return better


def lower_hull(cost: Floats, loss: Floats) -> list[int]:
    """Return the candidates on the lower convex hull, from the cheapest to the least loss.

    Along it cost rises strictly, loss falls strictly, and the fall per cost gets smaller.

    >>> lower_hull(np.array([1.0, 2.0, 3.0]), np.array([9.0, 8.0, 1.0]))
    [0, 2]
    """
    hull: list[int] = []
    for c in np.lexsort((loss, cost)):
        if hull and loss[c] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and not _convex(cost, loss, hull[-2], hull[-1], int(c)):
            hull.pop()
        hull.append(int(c))
    return hull


def _convex(cost: Floats, loss: Floats, a: int, b: int, c: int) -> bool:
    fall = (loss[a] - loss[b]) * (cost[c] - cost[b])
    return bool(fall > (loss[b] - loss[c]) * (cost[b] - cost[a]))


def surviving_states(
    states: States, key: Ints | None, tolerance: float, *, ties: bool = True
) -> Ints:
    """Return the indices of states that no other of the same ``key`` dominates.

    With ``ties`` the earlier of equal choices stays, else whichever comes first.
    Exact for at most one budget; under several, a cheap test that may leave dominated ones.
    """
    if key is None:
        return np.arange(len(states.loss))
    level = _levels(states.loss, tolerance)
    worth = _break_ties(states, level) if ties else level * len(level) + np.arange(len(level))
    axes = states.usage.shape[1]
    if axes < 2:
        usage = states.usage[:, 0] if axes else np.zeros(len(worth))
        return _staircase(key, usage, worth)
    return _neighbours(key, states.usage, worth)


def _levels(loss: Floats, tolerance: float) -> Ints:
    """Rank losses; those that differ by rounding only share a rank."""
    order = np.argsort(loss, kind="stable")
    jumps = np.diff(loss[order], prepend=loss[order[:1]]) > tolerance
    level = np.empty(len(loss), dtype=np.int64)
    level[order] = np.cumsum(jumps)
    return level


def _break_ties(states: States, level: Ints) -> Ints:
    """Refine the ranks so that of equal losses the earlier choice ranks first."""
    count = len(level)
    sizes = np.bincount(level)
    tied = np.flatnonzero(sizes[level] > 1)
    worth = level * count
    if len(tied):
        rows = np.ascontiguousarray(states.choice[tied])
        text = rows.view(f"V{rows.shape[1] * rows.itemsize}").ravel()
        worth[tied] += np.unique(text, return_inverse=True)[1].ravel()
    return worth


def _staircase(key: Ints, usage: Floats, worth: Ints) -> Ints:
    """One axis: sorted by usage, a state stays where it is better than all before it."""
    order = np.lexsort((worth, usage, key))
    groups = np.cumsum(np.diff(key[order], prepend=key[order[:1]]) != 0)
    # Each later group starts below all earlier values, so one running minimum serves them all.
    ranked = worth[order] - groups * (int(worth.max()) + 1)
    least = np.minimum.accumulate(ranked)
    keep = np.append(True, ranked[1:] < least[:-1])
    return np.sort(order[keep])


def _neighbours(key: Ints, usage: Floats, worth: Ints) -> Ints:
    """Several axes: sorted by key and first axis, each state is compared with those before it."""
    order = np.lexsort((worth, usage[:, 0], key))
    key, usage, worth = key[order], usage[order], worth[order]
    dominated = np.zeros(len(key), dtype=bool)
    for shift in range(1, min(NEIGHBOURS, len(key) - 1) + 1):
        beats = (key[:-shift] == key[shift:]) & (worth[:-shift] < worth[shift:])
        beats &= (usage[:-shift] <= usage[shift:]).all(axis=1)
        dominated[shift:] |= beats
    return np.sort(order[~dominated])

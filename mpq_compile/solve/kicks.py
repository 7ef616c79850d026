"""Local search where every group has to do with every other one: best changes of two, and kicks.

All pairs of changes are looked at together, their joint terms included, and the best one is taken
until none is better (the 2-opt neighbourhood); then some groups are changed at random, and it is
done again from the best answer (iterated local search, Lourenço, Martin & Stützle 2003).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.tables import Bools, Floats, Incumbent, Ints, Tables

# Kicks without a better answer before the end, and the largest share of groups that one changes.
IDLE, SHARE = 40, 0.5


@dataclass(frozen=True, kw_only=True)
class Dense:
    """All terms of G·C candidates: singles on no diagonal, joint terms in full.

    Attributes:
        loss: (GC,); ``huge`` where not allowed.
        joint: (GC, GC) symmetric; ``huge`` where forbidden.
        cost: (D, GC); joint_cost: (D, GC, GC), or (D, 1, 1) zeros where pairs cost nothing.
        group: (GC,).
    """

    loss: Floats
    joint: Floats
    cost: Floats
    joint_cost: Floats
    limit: Floats
    scale: Floats
    group: Ints
    width: int


def build_dense(tables: Tables) -> Dense:
    """Return the terms of a problem in full."""
    count, width = tables.loss.shape
    size, axes = count * width, len(tables.axes)
    huge = 1.0 + 2.0 * float(np.abs(tables.loss).max(axis=1).sum())
    huge += 2.0 * sum(float(np.abs(p.loss).max(initial=0.0)) for p in tables.pairs)
    joint = np.zeros((size, size))
    costly = any(p.cost.any() for p in tables.pairs)
    joint_cost = np.zeros((axes, size, size) if costly else (axes, 1, 1))
    for pair in tables.pairs:
        rows, columns = tables.classes[pair.a], tables.classes[pair.b]
        a = slice(pair.a * width, (pair.a + 1) * width)
        b = slice(pair.b * width, (pair.b + 1) * width)
        joint[a, b] = np.where(pair.forbidden, huge, pair.loss)[np.ix_(rows, columns)]
        joint[b, a] = joint[a, b].T
        if costly:
            joint_cost[:, a, b] = pair.cost[:, rows][:, :, columns]
            joint_cost[:, b, a] = joint_cost[:, a, b].transpose(0, 2, 1)
    return Dense(
        loss=np.where(tables.allowed, tables.loss, huge).ravel(),
        joint=joint,
        cost=tables.cost.reshape(axes, size),
        joint_cost=joint_cost,
        limit=tables.limit,
        scale=np.where(tables.scale > 0, tables.scale, 1.0),
        group=np.repeat(np.arange(count), width),
        width=width,
    )


def iterate(tables: Tables, start: Ints, *, deadline: float, end: float) -> Incumbent | None:
    """Return the best answer that descents and kicks from ``start`` on find, None where none fits.

    ``start`` (G,) need not fit. The kicks stop at ``deadline``, the first descent at ``end``.
    """
    dense, draw = build_dense(tables), np.random.default_rng(0)
    best = _known(tables, descend(dense, start, end))
    choice, idle = start if best is None else best.choice, 0
    while idle < IDLE and time.perf_counter() < deadline:
        found = _known(tables, descend(dense, _kicked(tables, choice, draw), deadline))
        idle += 1
        if found is not None and (best is None or found.loss < best.loss):
            best, choice, idle = found, found.choice, 0
    return best


def _known(tables: Tables, choice: Ints) -> Incumbent | None:
    loss, _ = tables.worth(choice)
    allowed = tables.allowed[np.arange(len(choice)), choice].all()
    if not (allowed and loss < np.inf and tables.fits(choice)):
        return None
    return Incumbent(choice=choice, loss=loss)


def _kicked(tables: Tables, choice: Ints, draw: np.random.Generator) -> Ints:
    kicked, count = choice.copy(), len(choice)
    many = int(draw.integers(1, max(2, int(SHARE * count)) + 1))
    for g in draw.choice(count, min(many, count), replace=False):
        kicked[g] = draw.choice(np.flatnonzero(tables.allowed[g]))
    return kicked


def descend(dense: Dense, choice: Ints, deadline: float = np.inf) -> Ints:
    """Take the best one or two changes until none is better.

    While the usage exceeds the budget, better is less excess; then it is less loss within it.
    """
    choice = choice.copy()
    while time.perf_counter() < deadline:
        change, excess, now = _changes(dense, choice)
        if now > 0:
            pick = np.lexsort((change.ravel(), excess.ravel()))[0]
            useful = excess.ravel()[pick] < now * (1 - 1e-9)
        else:
            change[excess > 0] = np.inf
            pick = int(change.argmin())
            useful = change.ravel()[pick] < -1e-12 * (1 + np.abs(dense.loss).max())
        if not useful:
            break
        for i in np.unravel_index(pick, change.shape):
            choice[i // dense.width] = i % dense.width
    return choice


def _changes(dense: Dense, choice: Ints) -> tuple[Floats, Floats, float]:
    """Return for every two changes that of the loss and the excess of usage after, and it now."""
    chosen = np.arange(len(choice)) * dense.width + choice
    own = np.repeat(chosen, dense.width)
    alone = dense.loss + dense.joint[:, chosen].sum(axis=1)
    change = _together(alone - alone[own], dense.joint, own)
    same = dense.group[:, None] == dense.group[None]
    change = _ones(change, alone - alone[own], same)
    excess = np.zeros_like(change)
    now = 0.0
    for d, cost in enumerate(dense.cost):
        full = dense.joint_cost[d]
        joined = full[:, chosen].sum(axis=1) if full.size > 1 else np.zeros(len(own))
        paid = cost + joined
        more = paid - paid[own]
        both = _together(more, full, own) if full.size > 1 else more[:, None] + more
        both = _ones(both, more, same)
        over = cost[chosen].sum() + 0.5 * joined[chosen].sum() - dense.limit[d]
        margin = 1e-12 * dense.scale[d]
        now += max(0.0, over - margin) / dense.scale[d]
        excess += np.maximum(0.0, over + both - margin) / dense.scale[d]
    return change, excess, now


def _together(alone: Floats, joint: Floats, own: Ints) -> Floats:
    """Return what two changes of different groups bring together."""
    both = alone[:, None] + alone + joint
    both -= joint[:, own] + joint[own] - joint[np.ix_(own, own)]
    return both


def _ones(both: Floats, alone: Floats, same: Bools) -> Floats:
    """Put single changes on the diagonal; two of one group are none."""
    both[same] = np.inf
    np.fill_diagonal(both, alone)
    return both

"""Changes of one group's candidate or of two: what each is worth, and climbing by the best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.lagrangian import Dual
from mpq_compile.solve.tables import Bools, Floats, Incumbent, Ints, Tables

# Minimisers of the Lagrangian that the first answer walks towards.
WALKS = 12

# Changes that are tried in twos: those of least reduced cost, more where few bring nothing.
EXCHANGED = (64, 256)
# The same under one budget, where sorting finds the best two without trying all.
SORTED = (4096,)


def deltas(tables: Tables, choice: Ints) -> tuple[Floats, Floats]:
    """Return the change of loss (G, C) and of usage (D, G, C) by each single change.

    The change of loss is infinite where the candidate or a combination is not allowed.
    """
    rows = np.arange(len(choice))
    loss = tables.loss - tables.loss[rows, choice][:, None]
    usage = tables.cost - tables.cost[:, rows, choice][:, :, None]
    loss[~tables.allowed] = np.inf
    classes = tables.classes[rows, choice]
    for pair in tables.pairs:
        for side in (pair, pair.transposed()):
            own, other = classes[side.a], classes[side.b]
            to = tables.classes[side.a]
            loss[side.a] += side.loss[to, other] - side.loss[own, other]
            loss[side.a][side.forbidden[to, other]] = np.inf
            usage[:, side.a] += side.cost[:, to, other] - side.cost[:, own, other][:, None]
    return loss, usage


def climb(tables: Tables, choice: Ints, price: Floats) -> Ints:
    """Take the best single change that lowers the loss and fits, until there is none.

    The best change has the largest fall of loss per price·Δusage; one that costs nothing comes
    before all others. ``choice`` must fit; what is returned fits and has no more loss.
    """
    loss, usage = tables.worth(choice)
    while (step := _best_change(tables, choice, usage, price)) is not None:
        changed = choice.copy()
        changed[step[0]] = step[1]
        changed_loss, changed_usage = tables.worth(changed)
        # Rounding can feign a fall, and the climb would then go round in circles.
        if not changed_loss < loss or not tables.fits(changed):
            break
        choice, loss, usage = changed, changed_loss, changed_usage
    return choice


def _best_change(
    tables: Tables, choice: Ints, usage: Floats, price: Floats
) -> tuple[int, int] | None:
    loss, more = deltas(tables, choice)
    fitting = (usage[:, None, None] + more <= tables.limit[:, None, None]).all(axis=0)
    useful = fitting & (loss < 0)
    if not useful.any():
        return None
    paid = np.tensordot(price, more, axes=1)
    free = useful & (paid <= 0)
    if free.any():
        score = np.where(free, -loss, -np.inf)
    else:
        score = np.where(useful, -loss / np.where(useful, paid, 1.0), -np.inf)
    group, candidate = np.unravel_index(int(np.argmax(score)), score.shape)
    return int(group), int(candidate)


def exchange(tables: Tables, choice: Ints, price: Floats, *, least: float) -> Ints:
    """Take the best two changes at once that lower the loss and fit, until there are none.

    Only the changes of least loss + price·usage are tried, and none below the loss ``least``,
    which nothing is known to go below. ``choice`` must fit; what is returned fits.
    """
    loss, usage = tables.worth(choice)
    one_budget = len(tables.axes) == 1 and not tables.pairs
    best_two, levels = (_sorted_two, SORTED) if one_budget else (_best_two, EXCHANGED)
    level = 0
    while loss > least and level < len(levels):
        near = _nearest(tables, choice, price, levels[level])
        changed = choice.copy()
        for k in best_two(tables, near, tables.limit - usage):
            changed[near.group[k]] = near.candidate[k]
        changed_loss, changed_usage = tables.worth(changed)
        if changed_loss < loss and tables.fits(changed):
            choice, loss, usage = changed, changed_loss, changed_usage
        else:
            level += 1
    return choice


@dataclass(frozen=True, kw_only=True)
class Changes:
    """M changes: group and candidate (M,), change of loss (M,) and of usage (D, M)."""

    group: Ints
    candidate: Ints
    loss: Floats
    more: Floats


def _nearest(tables: Tables, choice: Ints, price: Floats, count: int) -> Changes:
    """Return the changes of least loss + price·usage."""
    loss, more = deltas(tables, choice)
    rise = loss + np.tensordot(price, more, axes=1)
    rise[np.arange(len(choice)), choice] = np.inf
    rise = rise.ravel()
    count = min(count, len(rise))
    near = np.sort(np.argpartition(rise, count - 1)[:count])
    near = near[np.isfinite(rise[near])]
    group, candidate = np.divmod(near, loss.shape[1])
    return Changes(
        group=group,
        candidate=candidate,
        loss=loss[group, candidate],
        more=more[:, group, candidate],
    )


def _best_two(tables: Tables, near: Changes, slack: Floats) -> list[int]:
    """Return the best two changes of different groups that no pair joins; none if none."""
    fall = np.add.outer(near.loss, near.loss)
    useful = (fall < 0) & ~_joined(tables, near.group)
    for spent, left in zip(near.more, slack, strict=True):
        useful &= np.add.outer(spent, spent) <= left
    if not useful.any():
        return []
    return [int(k) for k in np.unravel_index(np.where(useful, fall, 0.0).argmin(), fall.shape)]


def _sorted_two(tables: Tables, near: Changes, slack: Floats) -> list[int]:
    """As :func:`_best_two` under one budget: for each change the best that fits beside it.

    In order of usage that is a running minimum. Where it is of the same group, it is left out.
    """
    order = np.argsort(near.more[0], kind="stable")
    loss, more, group = near.loss[order], near.more[0, order], near.group[order]
    if not len(order):
        return []
    least = np.minimum.accumulate(loss)
    place = np.maximum.accumulate(np.where(loss == least, np.arange(len(loss)), 0))
    fitting = np.searchsorted(more, slack[0] - more, side="right") - 1
    partner = place[np.maximum(fitting, 0)]
    fall = np.where((fitting >= 0) & (group[partner] != group), loss + loss[partner], 0.0)
    best = int(fall.argmin())
    return [int(order[best]), int(order[partner[best]])] if fall[best] < 0 else []


def _joined(tables: Tables, group: Ints) -> Bools:
    """(M, M): whether two changes are of one group, or of two that a pair joins."""
    joined = np.equal.outer(group, group)
    if tables.pairs:
        adjacent = np.zeros((len(tables.loss),) * 2, dtype=bool)
        ends = np.array([(p.a, p.b) for p in tables.pairs])
        adjacent[ends[:, 0], ends[:, 1]] = adjacent[ends[:, 1], ends[:, 0]] = True
        joined |= adjacent[np.ix_(group, group)]
    return joined


def walk(tables: Tables, choice: Ints, towards: Ints, price: Floats) -> Ints:
    """Return the best assignment that fits on the way from ``choice`` to another one.

    Groups change in the order of loss + price·usage. Pair terms are not looked at on the way, so
    that of problems with pairs the end may fit nothing: ``choice`` is then returned.
    """
    rows = np.flatnonzero(choice != towards)
    loss = tables.loss[rows, towards[rows]] - tables.loss[rows, choice[rows]]
    more = tables.cost[:, rows, towards[rows]] - tables.cost[:, rows, choice[rows]]
    order = np.argsort(loss + price @ more, kind="stable")
    start, usage = tables.worth(choice)
    fall, spent = np.cumsum(loss[order]), usage[:, None] + np.cumsum(more[:, order], axis=1)
    fits = (spent <= tables.limit[:, None]).all(axis=0) & (fall < 0)
    if not fits.any():
        return choice
    end = int(np.where(fits, fall, np.inf).argmin())
    walked = choice.copy()
    walked[rows[order[: end + 1]]] = towards[rows[order[: end + 1]]]
    better = tables.worth(walked)[0] < start and tables.fits(walked)
    return walked if better else choice


def first_incumbent(tables: Tables, dual: Dual, *, least: float = -np.inf) -> Incumbent | None:
    """Climb from the dual's minimisers and from between them; return the best found.

    ``least`` is a loss that nothing is known to go below: there the climb ends.
    """
    starts = {c.choice.tobytes(): c.choice for c in dual.columns if len(c.choice)}
    worth = sorted(((tables.worth(x)[0], i) for i, x in enumerate(starts.values())))
    columns = [list(starts.values())[i] for loss, i in worth if loss < np.inf]
    fitting = next((x for x in columns if tables.fits(x)), None)
    if fitting is None:
        return None
    walks = [walk(tables, fitting, x, dual.price) for x in columns[:WALKS]]
    best = min([fitting, *walks], key=lambda x: tables.worth(x)[0])
    choice = climb(tables, best, dual.price)
    choice = exchange(tables, choice, dual.price, least=least)
    return Incumbent(choice=choice, loss=tables.worth(choice)[0])

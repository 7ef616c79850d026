"""Changes of one group's candidate: what each is worth, and climbing by the best of them."""

from __future__ import annotations

import numpy as np

from mpq_compile.solve.tables import Floats, Ints, Tables


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

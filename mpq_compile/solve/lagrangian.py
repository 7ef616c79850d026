"""The Lagrangian bound and its best multipliers.

For λ ≥ 0 every assignment within the budget has

    loss(x) ≥ D(λ) = min_x [ loss(x) + λ·(usage(x) − limit) ].

D is concave. Its maximum is found by Dantzig-Wolfe decomposition: the revised simplex method over
the columns (loss(x), usage(x) − limit), of which the minimisation above delivers the next one
(Dantzig & Wolfe 1960). A λ with min_x λ·(usage(x) − limit) > 0 proves that nothing fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.elimination import Elimination, eliminate, trace
from mpq_compile.solve.tables import ROUNDING, Floats, Ints, Tables

MAX_PIVOTS = 400


@dataclass(frozen=True, kw_only=True)
class Column:
    """A minimiser of the Lagrangian; in a relaxed plan its copies need not agree."""

    value: float
    choice: Ints
    loss: float
    slack: Floats


@dataclass(frozen=True, kw_only=True)
class Dual:
    """Result of the maximisation.

    Attributes:
        feasible: False where ``price`` proves that no assignment fits.
        price: (D,) the best multipliers.
        bound: D(price), infinite where infeasible.
        columns: Every minimiser met on the way.
        prices: The multipliers met on the way, best bound last.
    """

    feasible: bool
    price: Floats
    bound: float
    columns: tuple[Column, ...]
    prices: tuple[Floats, ...]


def minimise(tables: Tables, plan: Elimination, weight: float, price: Floats) -> Column:
    """Return a minimiser of weight·loss + price·(usage − limit) over all assignments."""
    if not plan.order:
        return _minimise_singles(tables, weight, price)
    messages = eliminate(tables, plan, np.array([weight]), price[None])
    alone = np.ones(len(tables.loss), dtype=bool)
    alone[list(plan.order)] = False
    reduced = messages.reduced[0, alone]
    value = float(reduced.min(axis=1).sum() + messages.minimum[0] - price @ tables.limit)
    if not np.isfinite(value):
        return Column(value=np.inf, choice=np.array([]), loss=np.inf, slack=-tables.limit)
    choice, loss, usage = trace(tables, messages)
    choice[alone] = reduced.argmin(axis=1)
    rows = np.flatnonzero(alone)
    loss += float(tables.loss[rows, choice[rows]].sum())
    usage = usage + tables.cost[:, rows, choice[rows]].sum(axis=1)
    return Column(value=value, choice=choice, loss=loss, slack=usage - tables.limit)


def _minimise_singles(tables: Tables, weight: float, price: Floats) -> Column:
    """As :func:`minimise`, without pairs: every group for itself."""
    loss = tables.open_loss * weight if weight else np.where(tables.allowed, 0.0, np.inf)
    reduced = loss + np.tensordot(price, tables.cost, axes=1)
    choice = reduced.argmin(axis=1)
    rows = np.arange(len(choice))
    usage = tables.cost[:, rows, choice].sum(axis=1)
    return Column(
        value=float(reduced[rows, choice].sum() - price @ tables.limit),
        choice=choice,
        loss=float(tables.loss[rows, choice].sum()),
        slack=usage - tables.limit,
    )


def maximise_dual(tables: Tables, plan: Elimination) -> Dual:
    """Return the multipliers of the best bound, or those that prove infeasibility."""
    axes = len(tables.axes)
    start = minimise(tables, plan, 1.0, np.zeros(axes))
    if not np.isfinite(start.value):
        return Dual(feasible=False, price=np.zeros(axes), bound=np.inf, columns=(), prices=())
    if not axes or (not plan.relaxed and (start.slack <= 0).all()):
        return _free(start, axes)
    master = _Master(tables, plan, start)
    ray = master.run(weight=0.0)
    if ray.value > _tolerance(tables, ray):
        columns = tuple(master.columns)
        prices = (ray.price,)
        return Dual(feasible=False, price=ray.price, bound=np.inf, columns=columns, prices=prices)
    best = master.run(weight=1.0)
    return Dual(
        feasible=True,
        price=best.price,
        bound=best.value,
        columns=tuple(master.columns),
        prices=(*master.prices, best.price),
    )


def _free(start: Column, axes: int) -> Dual:
    zero = np.zeros(axes)
    return Dual(feasible=True, price=zero, bound=start.value, columns=(start,), prices=(zero,))


@dataclass(frozen=True, kw_only=True)
class _Best:
    value: float
    price: Floats


def _tolerance(tables: Tables, best: _Best) -> float:
    return ROUNDING * float(best.price @ tables.scale)


class _Master:
    """The restricted master problem: D + 1 rows, slack and artificial columns, minimisers.

    Rows are scaled by the spread of each axis, or pivots would compare bytes with microseconds.
    """

    def __init__(self, tables: Tables, plan: Elimination, start: Column) -> None:
        self.tables, self.plan = tables, plan
        self.scale = np.where(tables.scale > 0, tables.scale, 1.0)
        self.columns: list[Column] = [start]
        self.prices: list[Floats] = []
        axes = len(tables.axes)
        unit = np.eye(axes + 1)
        over = start.slack > 0
        # Basis: per axis a slack (+1) or, where the start overspends, an artificial column (−1).
        self.basis = np.where(np.append(over, False), -1.0, 1.0)[None] * unit
        self.basis[:axes, axes] = start.slack / self.scale
        self.artificial = np.append(over, False)
        self.loss = np.append(np.zeros(axes), start.loss)

    def run(self, *, weight: float) -> _Best:
        """Pivot until no column improves; return the best multipliers seen."""
        axes = len(self.scale)
        best = _Best(value=self.columns[0].value if weight else -np.inf, price=np.zeros(axes))
        for _ in range(MAX_PIVOTS):
            if weight == 0.0 and not self.artificial.any():
                return _Best(value=0.0, price=best.price)
            costs = np.where(self.artificial, 1.0, 0.0) if weight == 0.0 else self.loss
            dual = np.linalg.lstsq(self.basis.T, costs, rcond=None)[0]
            slack = int(np.argmax(dual[:axes])) if axes else 0
            if dual[slack] > 1e-12 * np.abs(dual).max():
                if not self._pivot(np.eye(axes + 1)[slack], 0.0):
                    return best
                continue
            price = np.maximum(-dual[:axes], 0.0) / self.scale
            column = minimise(self.tables, self.plan, weight, price)
            self.columns.append(column)
            if weight:
                self.prices.append(price)
            if column.value > best.value:
                best = _Best(value=column.value, price=price)
            stop = dual[axes] - 1e-11 * (abs(dual[axes]) + abs(column.loss) * weight)
            if column.value >= stop or not self._pivot(self._entering(column), column.loss):
                return best
        return best

    def _entering(self, column: Column) -> Floats:
        return np.append(column.slack / self.scale, 1.0)

    def _pivot(self, entering: Floats, loss: float) -> bool:
        """Exchange a basic column for ``entering``; False where rounding leaves no pivot."""
        right = np.append(np.zeros(len(self.scale)), 1.0)
        solved, *_ = np.linalg.lstsq(self.basis, np.stack([right, entering], axis=1), rcond=None)
        level, direction = np.maximum(solved[:, 0], 0.0), solved[:, 1]
        usable = direction > 1e-11
        if not usable.any():
            return False
        ratio = np.where(usable, level / np.where(usable, direction, 1.0), np.inf)
        # Among ties an artificial column leaves first: phase two must not carry it.
        leaving = int(np.lexsort((~self.artificial, ratio))[0])
        self.basis[:, leaving] = entering
        self.loss[leaving] = loss
        self.artificial[leaving] = False
        return True

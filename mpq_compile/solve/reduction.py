"""Reduction to a core: candidates that no better answer takes go, decided groups become one.

For multipliers λ a group without pairs that takes candidate c raises the bound D(λ) by c's reduced
cost. Where that exceeds the gap to the best known answer, c is in no better answer (Dembo & Hammer
1980; the core of Pisinger 1995).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpq_compile.solve.lagrangian import Dual
from mpq_compile.solve.tables import ROUNDING, Bools, Floats, Incumbent, Ints, Tables


def within_gap(tables: Tables, dual: Dual, incumbent: Incumbent | None, step: float = 0.0) -> Bools:
    """Return ``allowed`` without the candidates that only worse assignments take.

    ``step`` is by how much an assignment has to be better to be looked for; 0 keeps equal ones.
    """
    if incumbent is None:
        return tables.allowed
    reduced = reduced_costs(tables, dual.price)
    rise = reduced - reduced.min(axis=1, keepdims=True)
    rounding = ROUNDING * (abs(incumbent.loss) + abs(dual.bound) + dual.price @ tables.scale)
    keep = dual.bound + rise <= incumbent.loss + rounding - step
    keep[tables.paired()] = True
    # Where nothing is better, the incumbent's own candidates stand for the group.
    empty = np.flatnonzero(~(keep & tables.allowed).any(axis=1))
    keep[empty, incumbent.choice[empty]] = True
    return tables.allowed & keep


def reduced_costs(tables: Tables, price: Floats) -> Floats:
    """(G, C) loss + price·cost, infinite where not allowed."""
    return tables.open_loss + np.tensordot(price, tables.cost, axes=1)


@dataclass(frozen=True, kw_only=True)
class Core:
    """The undecided and the paired groups, and one more that stands for all the others.

    Attributes:
        groups: (K,) their indices in the whole problem.
        candidates: (K, W) the candidates' indices there.
        decided: (G,) choice for the whole problem, right where a group is decided.
    """

    tables: Tables
    groups: Ints
    candidates: Ints
    decided: Ints

    def expand(self, choice: Ints) -> Ints:
        """Return the whole problem's choice for one of the core's."""
        whole = self.decided.copy()
        rows = np.arange(len(self.groups))
        whole[self.groups] = self.candidates[rows, choice[rows]]
        return whole

    def narrow(self, choice: Ints) -> Ints | None:
        """Return the core's choice for one of the whole problem, None where it left the core."""
        hit = self.candidates == choice[self.groups][:, None]
        hit &= self.tables.allowed[: len(self.groups)]
        decided = np.delete(np.arange(len(choice)), self.groups)
        same = np.array_equal(choice[decided], self.decided[decided])
        if not same or not hit.any(axis=1).all():
            return None
        rest = np.zeros(len(self.tables.loss) - len(self.groups), dtype=np.int64)
        return np.concatenate([hit.argmax(axis=1), rest])


def compress(tables: Tables) -> Core:
    """Return the core that ``tables.allowed`` leaves."""
    open_ = tables.allowed.sum(axis=1) > 1
    open_[tables.paired()] = True
    groups, decided = np.flatnonzero(open_), np.flatnonzero(~open_)
    allowed = tables.allowed[groups]
    width = int(allowed.sum(axis=1).max(initial=1))
    # Stable: candidates keep their order, by which ties are broken.
    candidates = np.argsort(~allowed, axis=1, kind="stable")[:, :width]
    rows = np.arange(len(groups))[:, None]
    choice = tables.allowed.argmax(axis=1)
    place = {g: k for k, g in enumerate(groups.tolist())}
    last = min(len(decided), 1)
    loss = _with_rest(tables.loss[groups][rows, candidates], 1)
    cost = _with_rest(tables.cost[:, groups][:, rows, candidates], 1)
    loss[-1, 0] = tables.loss[decided, choice[decided]].sum()
    cost[:, -1, 0] = tables.cost[:, decided, choice[decided]].sum(axis=1)
    kept = _with_rest(allowed[rows, candidates], 1)
    kept[-1, 0] = True
    count = len(groups) + last
    core = replace(
        tables,
        loss=loss[:count],
        cost=cost[:, :count],
        allowed=kept[:count],
        classes=_with_rest(tables.classes[groups][rows, candidates], 1)[:count],
        class_count=np.append(tables.class_count[groups], 1)[:count],
        pairs=tuple(replace(p, a=place[p.a], b=place[p.b]) for p in tables.pairs),
    )
    return Core(tables=core, groups=groups, candidates=candidates, decided=choice)


def _with_rest(values: np.ndarray, rows: int) -> np.ndarray:
    """Append empty groups to (..., K, W)."""
    pad = np.zeros((*values.shape[:-2], rows, values.shape[-1]), dtype=values.dtype)
    return np.concatenate([values, pad], axis=-2)

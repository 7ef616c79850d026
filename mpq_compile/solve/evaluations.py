"""The evaluations of a black box: counted, each assignment once; and what its solvers are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpq_compile.errors import PlanError
from mpq_compile.solve.landscape import Landscape
from mpq_compile.solve.tables import Floats, Ints

# Loss (P,) of assignments (P, V): bits, or indices of candidates.
Objective = Callable[[Ints], Any]


class Evaluations:
    """The objective at levels, each assignment asked for once, at most ``limit`` of them.

    What is asked for beyond the limit is infinite.
    """

    def __init__(self, objective: Objective, landscape: Landscape, limit: float) -> None:
        self.objective, self.landscape, self.limit = objective, landscape, limit
        self.index: dict[bytes, int] = {}
        self.levels: list[Ints] = []
        self.values: list[float] = []
        self.history: list[tuple[int, float]] = []

    def __len__(self) -> int:
        return len(self.values)

    @property
    def left(self) -> float:
        """How many more there may be."""
        return self.limit - len(self)

    def __call__(self, levels: Ints) -> Floats:
        """Return the losses (P,) of levels (P, G)."""
        keys = [row.tobytes() for row in np.ascontiguousarray(levels)]
        fresh = [i for k, i in {k: i for i, k in enumerate(keys)}.items() if k not in self.index]
        fresh = sorted(fresh)[: int(min(self.left, len(fresh)))]
        if fresh:
            values = _checked(self.objective(self.landscape.choice(levels[fresh])), len(fresh))
            for i, value in zip(fresh, values.tolist(), strict=True):
                self.index[keys[i]] = len(self.values)
                self.levels.append(levels[i].copy())
                self.values.append(value)
        known = (self.index.get(key) for key in keys)
        return np.array([np.inf if at is None else self.values[at] for at in known])

    def note(self, loss: float) -> None:
        """Remember the best loss so far."""
        if not self.history or loss < self.history[-1][1]:
            self.history.append((len(self), loss))


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a black-box solver is given: levels, budgets, the objective, levels (G,) that fit."""

    landscape: Landscape
    evaluate: Evaluations
    start: Ints
    seed: int
    learned: bool


def _checked(values: Any, count: int) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.shape == (count,) and not np.isnan(found).any():
        return found
    raise PlanError(
        "the objective's answer is not one number a particle",
        where="objective",
        expected=f"an array of shape ({count},) without NaN",
        found=f"shape {found.shape}{', with NaN' if np.isnan(found).any() else ''}",
        remedy="return one loss for each row; infinity where an assignment cannot be used",
    )

"""What heuristics stand on: the Lagrangian bound, a price of each axis, a choice that fits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mpq_compile.solve.answer import Proof
from mpq_compile.solve.conclusion import build_reduced, conclude
from mpq_compile.solve.elimination import Elimination, plan_elimination
from mpq_compile.solve.lagrangian import Dual, maximise_dual, minimise
from mpq_compile.solve.moves import first_incumbent
from mpq_compile.solve.optimise import optimise
from mpq_compile.solve.order import order_paired
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.tables import Floats, Incumbent, Ints, Tables


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """A problem with its bound.

    Attributes:
        tables: The problem's arrays without dominated candidates.
        dual: The best multipliers; ``dual.feasible`` is False where they prove that nothing fits.
        start, deadline: Seconds of ``time.perf_counter``.
    """

    problem: Problem
    tables: Tables
    plan: Elimination
    dual: Dual
    start: float
    deadline: float

    @cached_property
    def price(self) -> Floats:
        """(D,) what a unit of each axis counts: 1 / slack above its least usage."""
        tables = self.tables
        axes = np.eye(len(tables.axes))
        excess = np.array([minimise(tables, self.plan, 0.0, axis).value for axis in axes])
        spread = np.abs(tables.cost).max(axis=2).sum(axis=1)
        slack = np.maximum(-excess, 1e-6 * np.where(spread > 0, spread, 1.0))
        return 1.0 / slack

    def cheapest(self) -> Ints:
        """Return the choice of least price·usage."""
        return minimise(self.tables, self.plan, 0.0, self.price).choice

    def fits(self, choice: Ints) -> bool:
        """Return whether no pair forbids the choice and its usage is within the budget."""
        return self.tables.worth(choice)[0] < np.inf and self.tables.fits(choice)

    @cached_property
    def feasible(self) -> Proof:
        """A choice that fits, or the proof that there is none, or neither when the time is over.

        Where the cheapest choice exceeds one of several budgets, it is one that the Lagrangian
        or, if need be, a search finds.
        """
        if not self.dual.feasible:
            return Proof(incumbent=None, bound=np.inf, dual=self.dual, states=0, complete=True)
        choice = self.cheapest()
        if self.fits(choice):
            return self.proof(choice)
        incumbent = first_incumbent(self.tables, self.dual)
        if incumbent is not None:
            return self.proof(incumbent.choice)
        return optimise(self.tables, deadline=self.deadline, first_only=True)

    def proof(self, choice: Ints) -> Proof:
        """Return what is known when ``choice``, which fits, is the answer."""
        loss, _ = self.tables.worth(choice)
        return Proof(
            incumbent=Incumbent(choice=choice, loss=loss),
            bound=self.dual.bound,
            dual=self.dual,
            states=0,
            # Equal to its own bound, an answer is optimal and needs no search to say so.
            complete=loss <= self.dual.bound,
        )

    def nothing_fits(self, solver: str) -> Solution:
        """Return the answer where no choice is known that fits; raise where the time was over."""
        return conclude(self.problem, self.tables, self.feasible, solver=solver, start=self.start)

    def conclude(self, choice: Ints, solver: str, **extra: Any) -> Solution:
        """Return ``choice``, which fits, as a solution; ``extra`` goes into its certificate."""
        proof = self.proof(choice)
        solution = conclude(self.problem, self.tables, proof, solver=solver, start=self.start)
        return replace(solution, certificate={**solution.certificate, **extra})


def prepare(problem: Problem, time_limit_s: float | None) -> Grounds:
    """Reduce ``problem`` and bound it."""
    start = time.perf_counter()
    deadline = np.inf if time_limit_s is None else start + time_limit_s
    tables = build_reduced(problem)
    plan = plan_elimination(tables, order_paired(tables))
    return Grounds(
        problem=problem,
        tables=tables,
        plan=plan,
        dual=maximise_dual(tables, plan),
        start=start,
        deadline=deadline,
    )

"""The inverse problem: the cheapest network whose loss, or measured drop, stays within a bound.

It is the frontier's other reading. A bound on the metric's loss is one exact solve. A bound on the
measured drop is searched for along the frontier of loss and cost (:mod:`solve.threshold`): each
answer was itself measured, so an order that the metric got wrong costs measurements, never the
bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mpq_compile.allocate import OBJECTIVE_AXIS, OBJECTIVES, Allocation, with_problem
from mpq_compile.errors import InfeasibleBudgetError, PlanError, nearest
from mpq_compile.infeasibility import infeasible
from mpq_compile.judging import Judge
from mpq_compile.progress import counted
from mpq_compile.registry import SOLVERS
from mpq_compile.solve.curve import Frontier, frontier
from mpq_compile.solve.problem import (
    RELATIVE_TOLERANCE,
    Problem,
    Solution,
    evaluate,
    relative_gap,
)
from mpq_compile.solve.threshold import Crossing, cheapest_within
from mpq_compile.types import Budget

if TYPE_CHECKING:
    from mpq_compile.session import Session

EVALUATIONS = 16
# Where the frontier has gaps: evaluations kept for the one around the answer, solves to close it.
_SPARED = 4
_REFINING_SOLVES = 12


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is minimised instead of the loss.

    Args:
        objective: latency, size, bops or energy.
        judge: Measures the drop; None where only the metric's loss is bounded.
        evaluations: Most assignments that are measured in one search.
    """

    objective: str = "latency"
    judge: Judge | None = None
    evaluations: int = EVALUATIONS

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise PlanError(
                f"unknown objective {self.objective!r}",
                expected=", ".join(OBJECTIVES),
                found=repr(self.objective),
                remedy=nearest(self.objective, OBJECTIVES),
            )
        if self.evaluations < 1:
            raise PlanError(
                "a measured drop needs evaluations",
                expected="at least 1",
                found=self.evaluations,
                remedy="raise evaluations",
            )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search ended with."""

    assignment: dict[str, str]
    solution: Solution
    notes: Sequence[str]


def cheapest(session: Session, budget: Budget, goal: Goal) -> Found:
    """Return the cheapest assignment within ``max_loss`` and ``max_drop`` and the other budgets.

    Raises:
        InfeasibleBudgetError: The other budgets allow nothing, or nothing was found within the
            bound: the message says what the least drop was.
    """
    allocation = session.allocation()
    limits = allocation.limits(budget)
    if goal.judge is None:
        assert budget.max_loss is not None
        solution = _solved(allocation, budget, goal, limits, budget.max_loss)
        if solution.status == "infeasible":
            raise _nothing_within(allocation, budget, limits)
        note = f"least {goal.objective} with a {session.metric} loss of at most {budget.max_loss:g}"
        return Found(assignment=allocation.expand(solution), solution=solution, notes=[note])
    searched = _Search(allocation, budget, goal, limits)
    searched.run()
    if searched.crossing.best is None:
        raise _too_strict(searched.crossing, budget)
    point, curve = searched.crossing.best, searched.curve
    chosen = curve.assignment(point)
    solution = _solved(allocation, budget, goal, limits, float(curve.loss[point]), chosen)
    verified = _verified(searched.crossing, curve, goal.judge, budget)
    return Found(
        assignment=allocation.spread(chosen),
        solution=replace(solution, certificate={**solution.certificate, "drop": verified}),
        notes=[_note(verified, goal)],
    )


def _solved(
    allocation: Allocation,
    budget: Budget,
    goal: Goal,
    limits: Mapping[str, float],
    loss: float,
    chosen: Mapping[str, str] | None = None,
) -> Solution:
    """Return the proven minimum of the objective with the metric's loss bounded.

    ``chosen`` stands in its place where another assignment was taken: with what is proven of it.
    """
    # Rounding must not forbid the assignment whose loss is the bound itself.
    bound = loss * (1 + 1e-9) + 1e-15
    problem = allocation.inverse_problem(
        goal.objective, bound, limits, budget.peak_activation_bytes
    )
    solution: Solution = SOLVERS.load("exact")(problem)
    if chosen is not None:
        solution = _standing(solution, problem, chosen)
    # Bound and gap are of this cost then, in the solver's unit and without what no site costs.
    return with_problem(solution, problem, objective=goal.objective)


def _standing(solution: Solution, problem: Problem, chosen: Mapping[str, str]) -> Solution:
    """Return ``chosen``, which is within the budgets, with the bound of the optimum."""
    assert solution.bound is not None
    cost, usage = evaluate(problem, chosen)
    gap = relative_gap(cost, solution.bound)
    return replace(
        solution,
        status="optimal" if gap <= RELATIVE_TOLERANCE else "feasible",
        assignment=chosen,
        loss=cost,
        usage=usage,
        gap=gap,
    )


class _Search:
    """Measures points of the frontier; where it has gaps, those around the answer are closed.

    Attributes:
        curve: The frontier, by ascending cost.
        crossing: What was found on it.
    """

    curve: Frontier
    crossing: Crossing

    def __init__(
        self, allocation: Allocation, budget: Budget, goal: Goal, limits: Mapping[str, float]
    ) -> None:
        assert goal.judge is not None and budget.max_drop is not None
        self._allocation, self._budget = allocation, budget
        self._judge, self._limit, self._most = goal.judge, budget.max_drop, goal.evaluations
        self._axis = OBJECTIVE_AXIS[goal.objective]
        self._problem = allocation.tradeoff_problem(
            self._axis, limits, budget.peak_activation_bytes
        )
        self._limits = limits

    def run(self) -> None:
        """Search; raise ``InfeasibleBudgetError`` where the other budgets allow nothing."""
        self.curve = self._bounded(frontier(self._problem, self._axis))
        if not len(self.curve):
            raise _nothing_within(self._allocation, self._budget, self._limits)
        with counted(self._most, "search the cheapest") as done:
            spared = 0 if self.curve.complete else min(_SPARED, self._most // 2)
            self.crossing = self._cross(self._most - spared, {}, done)
            if spared and self.crossing.best is None:
                self.crossing = self._cross(spared, self.crossing.measured, done)
            if not self.curve.complete and self.crossing.best:
                self._refine(self.crossing.best, done)

    def _refine(self, best: int, done: Callable[[int], None]) -> None:
        """Find the breakpoints between the answer and the next cheaper point, and go on there."""
        old, measured = self.curve, self.crossing.measured
        narrow = replace(
            self._problem, budget={**self._problem.budget, self._axis: float(old.cost[best])}
        )
        between = frontier(
            narrow, self._axis, start=old.assignment(best - 1), solves=_REFINING_SOLVES
        )
        self.curve = old.merged(between)
        places = np.searchsorted(self.curve.cost, old.cost).tolist()
        known = {places[i]: drop for i, drop in measured.items()}
        self.crossing = self._cross(self._most - len(known), known, done)

    def _bounded(self, curve: Frontier) -> Frontier:
        """Return the points that lose no more than ``max_loss``."""
        bound = self._budget.max_loss
        if bound is None:
            return curve
        return curve.take(np.flatnonzero(curve.loss <= bound * (1 + 1e-9)))

    def _cross(
        self, evaluations: int, known: Mapping[int, float], done: Callable[[int], None]
    ) -> Crossing:
        def drop_of(point: int) -> float:
            drop = self._judge.of(self._allocation.spread(self.curve.assignment(point))).drop
            done(1)
            return drop

        found = cheapest_within(self.curve.cost.tolist(), drop_of, self._limit, evaluations, known)
        return replace(found, exhaustive=found.exhaustive and self.curve.complete)


def _verified(
    crossing: Crossing, curve: Frontier, judge: Judge, budget: Budget
) -> dict[str, float | int | str | bool]:
    """Return what was measured of the plan, and how far the search went."""
    assert crossing.best is not None and budget.max_drop is not None
    drops = [crossing.measured[i] for i in sorted(crossing.measured)]
    return {
        "measure": judge.name,
        "unit": judge.unit,
        "value": crossing.measured[crossing.best],
        "limit": budget.max_drop,
        "point": crossing.best,
        "points": len(curve),
        "measured": len(drops),
        "inversions": sum(cheap < dear for cheap, dear in pairwise(drops)),
        "exhaustive": crossing.exhaustive,
    }


def _note(verified: Mapping[str, float | int | str | bool], goal: Goal) -> str:
    inversions = verified["inversions"]
    order = f"; the metric's order was wrong {inversions} times among them" if inversions else ""
    every = "every cheaper one was measured too" if verified["exhaustive"] else "not all were"
    return (
        f"least {goal.objective} with a measured drop of {verified['value']:.3g} "
        f"(limit {verified['limit']:g}, {verified['measure']}): point {verified['point']} of "
        f"{verified['points']} on the frontier, {verified['measured']} measured, {every}{order}"
    )


def _too_strict(crossing: Crossing, budget: Budget) -> InfeasibleBudgetError:
    return InfeasibleBudgetError(
        "the drop cannot be kept within its bound",
        expected=f"a drop of at most {budget.max_drop:g}",
        found=f"{min(crossing.measured.values()):.3g} at the least, in {len(crossing.measured)} "
        f"assignments measured from the most accurate on",
        remedy="raise max_drop, allow wider candidates, or loosen the other budgets",
    )


def _nothing_within(
    allocation: Allocation, budget: Budget, limits: Mapping[str, float]
) -> InfeasibleBudgetError:
    """Return the error that says whether no cost or no loss can be kept within its bound."""
    problem = allocation.problem(limits, budget.peak_activation_bytes)
    best: Solution = SOLVERS.load("exact")(problem)
    if best.loss is None:
        return infeasible(allocation, budget, limits, best)
    return InfeasibleBudgetError(
        "the metric's loss cannot be kept within its bound",
        expected=f"a loss of at most {budget.max_loss:g}",
        found=f"{best.loss:.4g}, by the most accurate assignment",
        remedy="raise max_loss, allow wider candidates, or loosen the other budgets",
    )

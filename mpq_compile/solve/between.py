"""Breakpoints by repeated exact solves: for pair terms, other budgets, and very large problems.

A solve with budget b returns a point p with cost(p) ≤ b, which proves that no breakpoint costs
between cost(p) and b. What is not known yet are intervals between two known points; the one whose
box (cost × loss) is largest is solved next, at its middle, and where that shows nothing new,
directly below its upper end, which closes it or finds the next breakpoint there.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mpq_compile.errors import MpqError
from mpq_compile.progress import counted
from mpq_compile.registry import SOLVERS
from mpq_compile.solve.problem import (
    RELATIVE_TOLERANCE,
    CandidateTerm,
    Pair,
    Problem,
    Solution,
    evaluate,
    limit_of,
)
from mpq_compile.solve.reading import Matrix
from mpq_compile.solve.tables import Ints


@dataclass(frozen=True, kw_only=True)
class Found:
    """A point: candidate index per group, usage on the axes asked for, loss, gap."""

    choice: Ints
    usage: tuple[float, ...]
    loss: float
    gap: float = 0.0


@dataclass(frozen=True, kw_only=True, order=True)
class _Interval:
    """Budgets from ``low`` up to the cost of ``upper`` in which nothing is known.

    ``lower`` is optimal at ``low``. Ordered by the (negative) area of the box that it spans.
    """

    key: float
    number: int
    low: float = field(compare=False)
    lower: Found = field(compare=False)
    upper: Found = field(compare=False)
    halved: bool = field(compare=False, default=False)


class Solves:
    """Solves of one problem under changing budgets, until a deadline.

    Attributes:
        proven: False once an answer was not proven optimal.
    """

    def __init__(
        self, problem: Problem, axes: Sequence[str], *, solver: str, time_limit_s: float | None
    ) -> None:
        self.problem, self.axes = problem, tuple(axes)
        self.proven = True
        self._run = SOLVERS.load(solver)
        self._end = np.inf if time_limit_s is None else time.perf_counter() + time_limit_s

    @property
    def over(self) -> bool:
        """True once the time is over."""
        return time.perf_counter() >= self._end

    def at(self, budget: dict[str, float]) -> Found | None:
        """Return the point of least loss with these budgets beside the problem's own."""
        kept = {a: min(b, budget.get(a, np.inf)) for a, b in self.problem.budget.items()}
        return self._point(self._solved(replace(self.problem, budget={**budget, **kept})))

    def cheapest(self, axis: str) -> Found | None:
        """Return a point of least cost on ``axis``, and of these the one of least loss."""
        found = self._point(self._solved(swapped(self.problem, axis)))
        return None if found is None else self.at({axis: found.usage[self.axes.index(axis)]})

    def _solved(self, problem: Problem) -> Solution | None:
        left = None if np.isinf(self._end) else max(0.01, self._end - time.perf_counter())
        try:
            solution: Solution = self._run(problem, time_limit_s=left)
        except MpqError:  # the time was over before anything was found
            self.proven = False
            return None
        self.proven &= solution.status != "feasible"
        return None if solution.status == "infeasible" else solution

    def _point(self, solution: Solution | None) -> Found | None:
        if solution is None:
            return None
        loss, usage = evaluate(self.problem, solution.assignment)
        names = [[c.name for c in g.candidates] for g in self.problem.groups]
        groups = zip(self.problem.groups, names, strict=True)
        choice = [own.index(solution.assignment[group.name]) for group, own in groups]
        gap = 0.0 if solution.status == "optimal" else float(solution.gap or 0.0)
        usage_here = tuple(usage[a] for a in self.axes)
        return Found(choice=np.array(choice), usage=usage_here, loss=loss, gap=gap)


class SolvesBetween:
    """The staircase of one axis by exact solves."""

    def __init__(
        self, problem: Problem, axis: str, *, solver: str, time_limit_s: float | None
    ) -> None:
        self.axis = axis
        self._solves = Solves(problem, (axis,), solver=solver, time_limit_s=time_limit_s)
        self._numbers = itertools.count()
        self._open: list[_Interval] = []
        self._spans = 1.0, 1.0

    def run(self, known: Sequence[Found], solves: int) -> tuple[list[Found], bool]:
        """Return points, and whether they are all: at most ``solves`` solves beside the ends'."""
        points = self._ended(known)
        if len(points) < 2:
            return points, self._solves.proven
        self._spans = (
            points[-1].usage[0] - points[0].usage[0] or 1.0,
            points[0].loss - points[-1].loss or 1.0,
        )
        for lower, upper in itertools.pairwise(points):
            self._push(lower.usage[0], lower, upper)
        with counted(solves, "frontier") as done:
            for _ in range(solves):
                if not self._open or self._solves.over:
                    break
                points += self._narrow(heapq.heappop(self._open))
                done(1)
        return points, not self._open and self._solves.proven

    def _ended(self, known: Sequence[Found]) -> list[Found]:
        """Return known points, by ascending cost, between the cheapest and that of least loss."""
        last = self._solves.at({})
        if last is None:
            return []
        first = [] if known else [self._solves.cheapest(self.axis)]
        points = [p for p in (*first, *known) if p is not None]
        enough = [i for i, point in enumerate(points) if point.loss <= last.loss]
        return points[: enough[0] + 1] if enough else [*points, last]

    def _push(self, low: float, lower: Found, upper: Found, halved: bool = False) -> None:
        width, height = upper.usage[0] - low, lower.loss - upper.loss
        if height <= 0 or self._below(upper) <= low:
            return
        area = width / self._spans[0] * height / self._spans[1]
        number = next(self._numbers)
        heapq.heappush(
            self._open,
            _Interval(key=-area, number=number, low=low, lower=lower, upper=upper, halved=halved),
        )

    def _below(self, point: Found) -> float:
        """Return a budget that a point just exceeds, a solver's tolerance included."""
        cost = point.usage[0]
        return cost - 4 * RELATIVE_TOLERANCE * abs(cost) - 1e-13 * self._spans[0]

    def _narrow(self, interval: _Interval) -> list[Found]:
        """Solve once within an interval; push what is left of it and return what is new."""
        low, lower, upper = interval.low, interval.lower, interval.upper
        below = self._below(upper)
        budget = below if interval.halved else min(below, (low + upper.usage[0]) / 2)
        found = self._solves.at({self.axis: budget})
        if found is None or found.loss >= lower.loss - _rounding(lower):
            if not interval.halved:
                self._push(budget, lower, upper, halved=True)
            return []
        self._push(low, lower, found)
        # One that loses no more than the upper end takes its place: there is nothing above it.
        if found.loss > upper.loss + _rounding(upper):
            self._push(budget, found, upper)
        return [found]


class GridSearch:
    """Points for a grid of budgets on several axes."""

    def __init__(
        self, problem: Problem, axes: Sequence[str], *, solver: str, time_limit_s: float | None
    ) -> None:
        self.axes = tuple(axes)
        self._solves = Solves(problem, axes, solver=solver, time_limit_s=time_limit_s)

    def run(self, solves: int) -> list[Found]:
        """Solve for about ``solves`` combinations of evenly spaced budgets."""
        best = self._solves.at({})
        if best is None:
            return []
        ends = [self._solves.cheapest(axis) for axis in self.axes]
        found = [best, *(end for end in ends if end is not None)]
        steps = max(2, int(solves ** (1 / len(self.axes)) + 1e-9))
        levels = [
            np.linspace(min(p.usage[d] for p in found), best.usage[d], steps)
            for d in range(len(self.axes))
        ]
        combinations = list(itertools.product(*levels))
        with counted(len(combinations), "frontier") as done:
            for budgets in combinations:
                if self._solves.over:
                    break
                point = self._solves.at(dict(zip(self.axes, map(float, budgets), strict=True)))
                found += [] if point is None else [point]
                done(1)
        return found


def swapped(problem: Problem, axis: str) -> Problem:
    """Return the problem whose loss is the cost on ``axis``; budgets and what is forbidden stay."""
    groups = tuple(
        replace(
            group,
            candidates=tuple(
                CandidateTerm(name=c.name, loss=c.costs[axis], costs=c.costs)
                for c in group.candidates
            ),
        )
        for group in problem.groups
    )
    pairs = tuple(
        Pair(a=p.a, b=p.b, loss=_forbidding(p.costs.get(axis), p.loss), costs=p.costs)
        for p in problem.pairs
    )
    return replace(problem, groups=groups, pairs=pairs)


def _forbidding(matrix: Matrix | None, loss: Matrix | None) -> Matrix | None:
    """Return ``matrix`` (zeros for None) with None where ``loss`` forbids."""
    if loss is None:
        return matrix
    return tuple(
        tuple(
            None if value is None else 0.0 if matrix is None else matrix[i][j]
            for j, value in enumerate(row)
        )
        for i, row in enumerate(loss)
    )


def _rounding(point: Found) -> float:
    return limit_of(abs(point.loss)) - abs(point.loss) if point.loss else 0.0

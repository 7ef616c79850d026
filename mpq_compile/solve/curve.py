"""The whole trade-off: the least loss for every budget on an axis, as a list of breakpoints.

The value function v(b) = min { loss(x) : cost(x) ≤ b } is a falling staircase. Its steps are the
non-dominated (cost, loss) pairs. Without pair terms and other budgets they come from a dynamic
program over partial assignments (:mod:`states`), all of them. Where that grows too large, and
with pair terms or other budgets, exact solves find them one by one (:mod:`between`): all, or, after
a stated number of solves, some that are spread over the range. Several axes give a grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from mpq_compile.errors import PlanError, nearest
from mpq_compile.solve.between import Found, GridSearch, SolvesBetween
from mpq_compile.solve.problem import Problem, evaluate, limit_of
from mpq_compile.solve.states import Steps, spread_supported, staircase
from mpq_compile.solve.tables import Floats, Ints, build_tables

Method = Literal["states", "solves", "grid"]

SOLVES = 64
MAX_STATES = 200_000
# Losses that differ by less than this, relative to the greatest, are equal.
_ROUNDING = 1e-13


@dataclass(frozen=True, kw_only=True, eq=False)
class Frontier:
    """P points, none of which another beats, by ascending cost on the first axis.

    Attributes:
        axes: D names; one, unless a grid was asked for.
        groups: G names.
        candidates: Names of each group's candidates.
        choice: (P, G) candidate index.
        usage: (P, D) cost on each of ``axes``.
        loss: (P,).
        gap: (P,) (loss − bound) / max(1, |loss|) where the budget is the point's own usage;
            zero is a proof.
        complete: True where no breakpoint is missing and every gap is zero.
        method: How the points were found.
    """

    axes: tuple[str, ...]
    groups: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    choice: Ints
    usage: Floats
    loss: Floats
    gap: Floats
    complete: bool
    method: Method

    def __len__(self) -> int:
        return len(self.loss)

    @cached_property
    def cost(self) -> Floats:
        """(P,) cost on the first axis."""
        return self.usage[:, 0]

    def assignment(self, point: int) -> dict[str, str]:
        """Return group → candidate of a point."""
        rows = zip(self.groups, self.candidates, self.choice[point].tolist(), strict=True)
        return {name: names[c] for name, names, c in rows}

    def take(self, points: Ints) -> Frontier:
        """Return some of the points, by ascending index."""
        return replace(
            self,
            choice=self.choice[points],
            usage=self.usage[points],
            loss=self.loss[points],
            gap=self.gap[points],
        )

    def merged(self, other: Frontier) -> Frontier:
        """Return the points of two frontiers of one problem, by ascending cost, each once."""
        places = np.unique(np.append(self.cost, other.cost), return_index=True)[1]
        return replace(
            self,
            choice=np.concatenate([self.choice, other.choice])[places],
            usage=np.concatenate([self.usage, other.usage])[places],
            loss=np.append(self.loss, other.loss)[places],
            gap=np.append(self.gap, other.gap)[places],
        )

    def within_budget(self, budget: float) -> int | None:
        """Return the point of least loss whose cost is within ``budget``; None where none is."""
        fitting = np.flatnonzero(self.cost <= limit_of(budget))
        return int(fitting[np.argmin(self.loss[fitting])]) if len(fitting) else None

    def within_loss(self, loss: float) -> int | None:
        """Return the cheapest point whose loss is at most ``loss``: the other reading."""
        fitting = np.flatnonzero(self.loss <= limit_of(loss))
        return int(fitting[0]) if len(fitting) else None


def frontier(
    problem: Problem,
    axis: str | Sequence[str],
    *,
    solves: int = SOLVES,
    max_states: int = MAX_STATES,
    solver: str = "exact",
    time_limit_s: float | None = None,
    start: Mapping[str, str] | None = None,
) -> Frontier:
    """Return the trade-off between loss and the cost on ``axis``.

    Args:
        problem: Its budget on ``axis`` bounds the range; its other budgets are kept by all points.
        axis: One axis; or several, for a grid of budgets.
        solves: Number of exact solves, where the dynamic program does not do.
        max_states: Partial assignments that the dynamic program may hold; 0 for none.
        solver: Name of the solver of these solves.
        time_limit_s: For all of them together; what is found until then is returned.
        start: A breakpoint that is known: only what costs more is looked for, by solves.

    Raises:
        PlanError: No axis, or one that a candidate has no cost on.

    >>> from mpq_compile.solve import CandidateTerm, Group
    >>> rows = (("w8a8", 0.0, 8.0), ("w4a8", 1.0, 4.0), ("w2a8", 9.0, 2.0))
    >>> terms = tuple(CandidateTerm(name=n, loss=v, costs={"bytes": b}) for n, v, b in rows)
    >>> found = frontier(Problem(groups=(Group(name="g", candidates=terms),)), "bytes")
    >>> found.cost.tolist(), found.loss.tolist()
    ([2.0, 4.0, 8.0], [9.0, 1.0, 0.0])
    """
    axes = (axis,) if isinstance(axis, str) else tuple(dict.fromkeys(axis))
    _check_axes(problem, axes)
    if len(axes) > 1:
        search = GridSearch(problem, axes, solver=solver, time_limit_s=time_limit_s)
        return _frontier(problem, axes, search.run(solves), complete=False, method="grid")
    found = None if start else _by_states(problem, axes[0], max_states)
    if found is not None:
        return _frontier(problem, axes, found, complete=True, method="states")
    between = SolvesBetween(problem, axes[0], solver=solver, time_limit_s=time_limit_s)
    known = [_known(problem, axes[0], start)] if start else _supported(problem, axes[0], solves)
    points, complete = between.run(known, solves)
    return _frontier(problem, axes, points, complete=complete, method="solves")


def _check_axes(problem: Problem, axes: tuple[str, ...]) -> None:
    terms = [(g.name, c) for g in problem.groups for c in g.candidates]
    lacking = next(((g, c, a) for a in axes for g, c in terms if a not in c.costs), None)
    if axes and lacking is None:
        return
    known = {a for _, c in terms for a in c.costs}
    name = lacking[2] if lacking else ""
    raise PlanError(
        f"no cost on the axis {name!r}" if lacking else "the frontier needs an axis",
        where=f"{lacking[0]}, {lacking[1].name}" if lacking else "frontier",
        expected="an axis on which every candidate has a cost",
        found=repr(name),
        remedy=nearest(name, known),
    )


def _separable(problem: Problem, axis: str) -> bool:
    return not problem.pairs and not set(problem.budget) - {axis}


def _by_states(problem: Problem, axis: str, max_states: int) -> list[Found] | None:
    """Return all breakpoints; None where pairs, other budgets or their number forbid it."""
    if not _separable(problem, axis):
        return None
    steps = staircase(build_tables(_budgeted(problem, axis)), max_states)
    return None if steps is None else _found(problem, axis, steps)


def _supported(problem: Problem, axis: str, count: int) -> list[Found]:
    """Return breakpoints on the convex hull, spread over the range: proven by multipliers."""
    if not _separable(problem, axis):
        return []
    return _found(problem, axis, spread_supported(build_tables(_budgeted(problem, axis)), count))


def _known(problem: Problem, axis: str, assignment: Mapping[str, str]) -> Found:
    loss, usage = evaluate(problem, assignment)
    names = [[c.name for c in g.candidates] for g in problem.groups]
    groups = zip(problem.groups, names, strict=True)
    choice = np.array([own.index(assignment[group.name]) for group, own in groups])
    return Found(choice=choice, usage=(usage[axis],), loss=loss)


def _budgeted(problem: Problem, axis: str) -> Problem:
    """Return the problem with a budget on ``axis`` alone, the largest usage where it has none."""
    most = math.fsum(max(c.costs[axis] for c in g.candidates) for g in problem.groups)
    return replace(problem, budget={axis: problem.budget.get(axis, most)})


def _found(problem: Problem, axis: str, steps: Steps) -> list[Found]:
    """Return the points of a search with sums that have no rounding error."""
    costs = [np.array([c.costs[axis] for c in g.candidates]) for g in problem.groups]
    losses = [np.array([c.loss for c in g.candidates]) for g in problem.groups]
    columns = range(len(problem.groups))
    cost = np.stack([costs[g][steps.choice[:, g]] for g in columns], axis=1)
    loss = np.stack([losses[g][steps.choice[:, g]] for g in columns], axis=1)
    return [
        Found(choice=x, usage=(math.fsum(c),), loss=math.fsum(v))
        for x, c, v in zip(steps.choice, cost.tolist(), loss.tolist(), strict=True)
    ]


def _frontier(
    problem: Problem, axes: tuple[str, ...], found: list[Found], *, complete: bool, method: Method
) -> Frontier:
    kept = _unbeaten(found)
    width = len(problem.groups)
    return Frontier(
        axes=axes,
        groups=tuple(g.name for g in problem.groups),
        candidates=tuple(tuple(c.name for c in g.candidates) for g in problem.groups),
        choice=np.array([p.choice for p in kept], dtype=np.int64).reshape(len(kept), width),
        usage=np.array([p.usage for p in kept], dtype=float).reshape(len(kept), len(axes)),
        loss=np.array([p.loss for p in kept], dtype=float),
        gap=np.array([p.gap for p in kept], dtype=float),
        complete=complete and all(p.gap == 0 for p in kept),
        method=method,
    )


def _unbeaten(found: list[Found]) -> list[Found]:
    """Return the points that no other beats, by ascending usage; equal ones once."""
    ordered = sorted(found, key=lambda p: (p.usage, p.loss))
    if not found or len(found[0].usage) > 1:
        return _unbeaten_in_several(ordered)
    kept: list[Found] = []
    rounding = _ROUNDING * max(abs(point.loss) for point in found)
    for point in ordered:
        if kept and point.loss >= kept[-1].loss - rounding:
            continue
        # Costs that differ by less than a budget's tolerance are one step.
        if kept and point.usage[0] <= limit_of(kept[-1].usage[0]):
            kept.pop()
        kept.append(point)
    return kept


def _unbeaten_in_several(ordered: list[Found]) -> list[Found]:
    kept: list[Found] = []
    for point in ordered:  # whatever beats a point stands before it
        beaten = any(
            other.loss <= point.loss
            and all(u <= limit_of(v) for u, v in zip(other.usage, point.usage, strict=True))
            for other in kept
        )
        if not beaten:
            kept.append(point)
    return kept

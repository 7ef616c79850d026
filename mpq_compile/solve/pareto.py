"""The Pareto walk of practical post-training mixed precision (method 2, arXiv 2302.05397).

[source] Phase 1 scores each (group, candidate) alone. Phase 2 sorts the list by falling score,
ties by bits, starts from the best homogeneous candidate and applies entries one after the other;
the states on the way are the Pareto curve, and the last entry that still meets the target is found
by brute force, or by binary or interpolation search where the curve is monotone.

Here the loss plays the role of −score, and price·cost that of bits. An entry that would not lower
its group's cost is passed over, so that no later entry raises bits again.

[derived] The reverse walk starts at the curve's end and takes entries back, the most harmful
first; where taking one back would exceed the budget, it stays, and the walk goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpq_compile.solve.feasible import Grounds, prepare
from mpq_compile.solve.landscape import Landscape, build_landscape
from mpq_compile.solve.last_meeting import SearchName, last_meeting
from mpq_compile.solve.problem import Problem, Solution, evaluate
from mpq_compile.solve.tables import Ints, build_tables


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One state of the walk: its assignment, loss (infinite where forbidden) and usage by axis."""

    assignment: dict[str, str]
    loss: float
    usage: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A group's change of level."""

    group: int
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The baseline (G,) and the entries that lower a group's cost, the least harmful first."""

    problem: Problem
    landscape: Landscape

    def __len__(self) -> int:
        return len(self.entries) + 1

    @cached_property
    def baseline(self) -> Ints:
        """Levels of the candidate name of least loss that all groups have; else each its best."""
        tables = self.landscape.tables
        groups = self.problem.groups
        common = set.intersection(*({c.name for c in g.candidates} for g in groups))
        if not common:
            return np.where(tables.allowed, tables.loss, np.inf).argmin(axis=1)
        homogeneous = []
        for name in (c.name for c in groups[0].candidates if c.name in common):
            choice = [[c.name for c in g.candidates].index(name) for g in groups]
            homogeneous.append(self.landscape.levels(np.array(choice)))
        loss, usage = self.landscape.worth(np.array(homogeneous))
        # A forbidden combination is worse than any loss; of equals the first is taken.
        return homogeneous[int(np.lexsort((loss, usage[:, -1]))[0])]

    @cached_property
    def entries(self) -> list[Entry]:
        """Changes in the order of the list; those that do not lower the cost are left out."""
        loss, now, found = self.landscape.tables.loss, self.baseline.copy(), []
        level = np.broadcast_to(np.arange(loss.shape[1]), loss.shape)
        for at in np.lexsort((level.ravel(), loss.ravel())).tolist():
            group, after = divmod(at, loss.shape[1])
            if after < now[group]:
                found.append(Entry(group=group, before=int(now[group]), after=after))
                now[group] = after
        return found

    def state(self, count: int) -> Ints:
        """Return the levels (G,) after the first ``count`` entries."""
        levels = self.baseline.copy()
        groups, after = self._targets
        # Of several entries of one group the last one holds.
        levels[groups[:count]] = after[:count]
        return levels

    @cached_property
    def _targets(self) -> tuple[Ints, Ints]:
        pairs = [(entry.group, entry.after) for entry in self.entries]
        groups, after = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return groups, after

    def margin(self, levels: Ints) -> float:
        """Return what is left of the scarcest budget, in parts of its spread."""
        landscape = self.landscape
        _, usage = landscape.worth(levels[None])
        return float(((landscape.limit - usage[0]) / landscape.spread).min())


def pareto_curve(problem: Problem) -> tuple[CurvePoint, ...]:
    """Return every state of the forward walk, from the best homogeneous candidate down.

    >>> from mpq_compile.solve import CandidateTerm, Group
    >>> groups = tuple(
    ...     Group(name=n, candidates=(
    ...         CandidateTerm(name="w8a8", loss=0.0, costs={"bits": 8.0}),
    ...         CandidateTerm(name="w4a8", loss=loss, costs={"bits": 4.0}),
    ...     ))
    ...     for n, loss in (("a", 0.3), ("b", 0.1))
    ... )
    >>> for point in pareto_curve(Problem(groups=groups, budget={"bits": 8.0})):
    ...     print(point.loss, point.usage)
    0.0 {'bits': 16.0}
    0.1 {'bits': 12.0}
    0.4 {'bits': 8.0}
    """
    walk = _walk(prepare(problem, None))
    points = []
    for count in range(len(walk)):
        choice = walk.landscape.choice(walk.state(count))
        pairs = zip(problem.groups, choice.tolist(), strict=True)
        assignment = {group.name: group.candidates[c].name for group, c in pairs}
        loss, usage = evaluate(problem, assignment)
        points.append(CurvePoint(assignment=assignment, loss=loss, usage=usage))
    return tuple(points)


def solve_pareto(
    problem: Problem,
    *,
    time_limit_s: float | None = None,
    reverse: bool = False,
    search: SearchName | None = None,
) -> Solution:
    """Return the first state of the walk that is within the budget, with the Lagrangian bound.

    Args:
        reverse: Walk back from the end of the curve instead.
        search: How the state is found. By default binary search with one budget and no pairs,
            where the cost falls with each entry, and brute force elsewhere.

    Where no state fits, the answer is a choice off the curve that does (the certificate's
    ``applied`` is then None).

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    grounds = prepare(problem, time_limit_s)
    incumbent = grounds.feasible.incumbent
    if incumbent is None:
        return grounds.nothing_fits("pareto")
    walk = _walk(grounds)
    last = len(walk) - 1
    if search is None:
        search = "binary" if len(problem.budget) <= 1 and not problem.pairs else "brute"
    # Seen from the cheap end, budgets are met up to some state, and the last one loses least.
    found = last_meeting(len(walk), lambda n: walk.margin(walk.state(last - n)), search)
    levels = walk.state(last) if reverse else walk.state(last - (found.index or 0))
    applied = None if found.index is None else last - found.index
    if reverse and applied is not None:
        levels = _take_back(walk, applied)
    choice = walk.landscape.choice(levels)
    if applied is None or not grounds.fits(choice):
        choice, applied = incumbent.choice, None
    return grounds.conclude(choice, "pareto", entries=last, applied=applied)


def _walk(grounds: Grounds) -> Walk:
    # Dominated candidates stand in the method's list too.
    landscape = build_landscape(build_tables(grounds.problem), grounds.price)
    return Walk(problem=grounds.problem, landscape=landscape)


def _take_back(walk: Walk, applied: int) -> Ints:
    """Return the reverse walk's end; all entries after ``applied`` are known to be taken back."""
    levels = walk.state(applied)
    for entry in reversed(walk.entries[:applied]):
        if levels[entry.group] != entry.after:
            continue
        levels[entry.group] = entry.before
        if walk.margin(levels) < 0:
            levels[entry.group] = entry.after
    return levels

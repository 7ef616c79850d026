"""Check a solution against its problem, without a line of the solvers.

The bound is checked from the multipliers λ ≥ 0 in the certificate alone:

    bound = min_x [ loss(x) + Σ_axis λ_axis·(usage_axis(x) − limit_axis) ]

is recomputed group by group where there are no pairs, and along the tree where the pairs form a
forest. On another graph the bound is "not checked". A bound above this one rests on a search,
which no short certificate can repeat: it is then reported as "search".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from mpq_compile.errors import PlanError
from mpq_compile.solve.problem import Pair, Problem, Solution, evaluate, fits, limit_of

TOLERANCE = 1e-9

Proven = Literal["multipliers", "search", "not checked", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcome of :func:`check`.

    Attributes:
        faults: What is wrong, in words; empty where all is right.
        proven: What the bound (or the infeasibility) rests on: "multipliers" where they prove
            it, "search" where they prove less, "not checked" where they cannot be evaluated.
        lagrangian_bound: The bound that the multipliers prove, None where not checked.
    """

    faults: tuple[str, ...]
    proven: Proven
    lagrangian_bound: float | None

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return not self.faults


def check(problem: Problem, solution: Solution) -> Report:
    """Verify assignment, usage, loss, gap and bound of a solution."""
    if solution.status == "infeasible":
        return _check_infeasible(problem, solution)
    faults = _check_worth(problem, solution)
    bound, more = _lagrangian(problem, solution, weight=1.0)
    scale = _scale(problem)
    faults += more + _check_bound(solution, bound, scale)
    return Report(
        faults=tuple(faults),
        proven=_proven(solution, bound, faults, scale),
        lagrangian_bound=bound,
    )


def _check_worth(problem: Problem, solution: Solution) -> list[str]:
    if solution.status not in ("optimal", "feasible"):
        return [f"status {solution.status!r} is unknown"]
    try:
        loss, usage = evaluate(problem, solution.assignment)
    except PlanError as error:
        return [str(error)]
    faults = []
    if not math.isfinite(loss):
        faults.append("a pair forbids the assignment")
    if not fits(usage, problem.budget):
        faults.append(f"usage {usage} exceeds the budget {dict(problem.budget)}")
    if solution.loss is None or not _close(solution.loss, loss, _scale(problem)):
        faults.append(f"loss is {loss}, not {solution.loss}")
    if set(solution.usage) != set(usage):
        faults.append(f"usage names {sorted(solution.usage)}, not {sorted(usage)}")
    faults += [
        f"usage of {axis} is {value}, not {solution.usage[axis]}"
        for axis, value in usage.items()
        if axis in solution.usage and not _close(solution.usage[axis], value, 0.0)
    ]
    return faults


def _check_bound(solution: Solution, lagrangian: float | None, scale: float) -> list[str]:
    loss, bound, gap = solution.loss, solution.bound, solution.gap
    if loss is None or bound is None or gap is None:
        return ["loss, bound or gap is missing"]
    faults = []
    if bound > loss and not _close(bound, loss, scale):
        faults.append(f"bound {bound} is above the loss {loss}")
    if not _close(gap, (loss - bound) / max(1.0, abs(loss)), 1.0):
        faults.append(f"gap {gap} does not follow from loss and bound")
    if solution.status == "optimal" and not _close(bound, loss, scale):
        faults.append("the status is optimal, but the bound is below the loss")
    if lagrangian is not None and lagrangian > loss and not _close(lagrangian, loss, scale):
        faults.append(f"the multipliers prove {lagrangian}, above the loss {loss}")
    return faults


def _proven(solution: Solution, bound: float | None, faults: list[str], scale: float) -> Proven:
    if faults or solution.bound is None:
        return "wrong"
    if bound is None:
        return "not checked"
    proved = solution.bound <= bound or _close(solution.bound, bound, scale)
    return "multipliers" if proved else "search"


def _check_infeasible(problem: Problem, solution: Solution) -> Report:
    faults = []
    if solution.assignment or solution.usage:
        faults.append("an infeasible problem has no assignment and no usage")
    if (solution.loss, solution.bound, solution.gap) != (None, None, None):
        faults.append("an infeasible problem has no loss, bound or gap")
    if "multipliers" not in solution.certificate:
        return Report(faults=tuple(faults), proven="not checked", lagrangian_bound=None)
    excess, more = _lagrangian(problem, solution, weight=0.0)
    faults += more
    if excess is not None and not excess > 0:
        faults.append("the multipliers do not prove that nothing fits")
    proven: Proven = "not checked" if excess is None else "multipliers"
    return Report(
        faults=tuple(faults), proven="wrong" if faults else proven, lagrangian_bound=excess
    )


def _lagrangian(
    problem: Problem, solution: Solution, *, weight: float
) -> tuple[float | None, list[str]]:
    """Recompute the minimum of weight·loss + λ·(usage − limit), and compare it with the claim."""
    prices = solution.certificate.get("multipliers")
    if not isinstance(prices, Mapping) or set(prices) != set(problem.budget):
        return None, ["the certificate lacks a multiplier for each budgeted axis"]
    if any(not (value >= 0 and math.isfinite(value)) for value in prices.values()):
        return None, ["a multiplier is negative or not finite"]
    least = _forest_minimum(problem, prices, weight)
    if least is None:
        return None, []
    paid = [prices[axis] * limit_of(bound) for axis, bound in problem.budget.items()]
    value = least - math.fsum(paid)
    claim = solution.certificate.get("lagrangian_bound", value)
    scale = _scale(problem) + math.fsum(map(abs, paid))
    # A solver may claim less than its multipliers prove, where it relaxed the pairs.
    if weight and claim > value and not _close(value, claim, scale):
        return value, [f"the multipliers prove the bound {value}, not {claim}"]
    return value, []


Edges = dict[tuple[str, str], list[list[float]]]


def _forest_minimum(problem: Problem, prices: Mapping[str, float], weight: float) -> float | None:
    """Return the minimum over all assignments, leaves first; None where the pairs have a cycle."""
    value = {
        g.name: [weight * c.loss + _paid(c.costs, prices) for c in g.candidates]
        for g in problem.groups
    }
    edges = _edges(problem, prices, weight)
    neighbours: dict[str, set[str]] = {name: set() for name in value}
    for a, b in edges:
        neighbours[a].add(b)
    leaves = [name for name in value if len(neighbours[name]) == 1]
    merged: set[str] = set()
    while leaves:
        leaf = leaves.pop()
        if not neighbours[leaf]:
            continue
        (parent,) = neighbours[leaf]
        _merge(value, edges[leaf, parent], leaf, parent)
        merged.add(leaf)
        neighbours[leaf] = set()
        neighbours[parent].discard(leaf)
        if len(neighbours[parent]) == 1:
            leaves.append(parent)
    if any(neighbours.values()):
        return None
    return math.fsum(min(values) for name, values in value.items() if name not in merged)


def _merge(
    value: dict[str, list[float]], matrix: list[list[float]], leaf: str, parent: str
) -> None:
    for j in range(len(value[parent])):
        value[parent][j] += min(v + matrix[i][j] for i, v in enumerate(value[leaf]))


def _edges(problem: Problem, prices: Mapping[str, float], weight: float) -> Edges:
    """Return the weighed pair terms in both directions; parallel pairs are added."""
    sizes = {g.name: len(g.candidates) for g in problem.groups}
    edges: Edges = {}
    for pair in problem.pairs:
        a, b = pair.a, pair.b
        old = edges.get((a, b), [[0.0] * sizes[b] for _ in range(sizes[a])])
        new = [
            [old[i][j] + _pair_term(pair, prices, weight, i, j) for j in range(sizes[b])]
            for i in range(sizes[a])
        ]
        edges[a, b] = new
        edges[b, a] = [list(column) for column in zip(*new, strict=True)]
    return edges


def _pair_term(pair: Pair, prices: Mapping[str, float], weight: float, i: int, j: int) -> float:
    """Return weight·loss + λ·cost of a combination, infinite where it is forbidden."""
    costs = {axis: matrix[i][j] for axis, matrix in pair.costs.items()}
    loss = 0.0 if pair.loss is None else pair.loss[i][j]
    known = {axis: cost for axis, cost in costs.items() if cost is not None}
    if loss is None or len(known) < len(costs):
        return math.inf
    return weight * loss + _paid(known, prices)


def _paid(costs: Mapping[str, float], prices: Mapping[str, float]) -> float:
    return math.fsum(price * costs[axis] for axis, price in prices.items() if axis in costs)


def _scale(problem: Problem) -> float:
    """Return the size of the losses: what rounding errors are measured against.

    The median over the groups' candidates, so that one huge loss does not hide all others.
    """
    return math.fsum(median(abs(c.loss) for c in g.candidates) for g in problem.groups)


def _close(one: float, other: float, scale: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other), scale)

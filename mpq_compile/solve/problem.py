"""The choice of one candidate per group under budgets: its records, and what a choice is worth.

    minimise    Σ_g loss_g(x_g) + Σ_(a,b) loss_ab(x_a, x_b)
    subject to  Σ_g cost_g(x_g) + Σ_(a,b) cost_ab(x_a, x_b) ≤ budget     for each budgeted axis

This is the multiple-choice knapsack problem, with several knapsacks and with pair terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mpq_compile.errors import nearest
from mpq_compile.solve.reading import (
    Matrix,
    read_list,
    read_name,
    read_number,
    read_numbers,
    read_object,
    refuse,
)
from mpq_compile.solve.validation import check_group, check_pair, check_unique

Status = Literal["optimal", "feasible", "infeasible"]

RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class CandidateTerm:
    """One candidate of a group: its loss, and its cost on each axis."""

    name: str
    loss: float
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A place where exactly one candidate is chosen."""

    name: str
    candidates: tuple[CandidateTerm, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Terms of two groups together, added to their single terms.

    Rows are ``a``'s candidates, columns ``b``'s. None in any matrix forbids the combination.
    """

    a: str
    b: str
    loss: Matrix | None = None
    costs: Mapping[str, Matrix] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Groups, the budget by axis (none at all is allowed), and pair terms.

    Raises:
        PlanError: A name is used twice or unknown, a number is not finite, a matrix has the
            wrong size, or a candidate lacks a cost that the budget names.
    """

    groups: tuple[Group, ...]
    budget: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        read_list(self.groups, "groups", nonempty=True)
        check_unique([g.name for g in self.groups], "groups")
        for i, group in enumerate(self.groups):
            check_group(group, f"groups[{i}]", self.budget)
        read_numbers(self.budget, "budget")
        for i, pair in enumerate(self.pairs):
            check_pair(self, pair, f"pairs[{i}]")

    @classmethod
    def from_json(cls, data: Any) -> Problem:
        """Read the form that ``mpq solve`` takes; raise ``PlanError`` where it is not that."""
        top = read_object(data, "problem", required=("groups", "budget"), optional=("pairs",))
        groups = read_list(top["groups"], "groups", nonempty=True)
        pairs = read_list(top.get("pairs", ()), "pairs")
        return cls(
            groups=tuple(_read_group(g, f"groups[{i}]") for i, g in enumerate(groups)),
            budget=read_numbers(top["budget"], "budget"),
            pairs=tuple(_read_pair(p, f"pairs[{i}]") for i, p in enumerate(pairs)),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the problem as JSON-ready data, the inverse of :meth:`from_json`."""
        return {
            "groups": [
                {
                    "name": g.name,
                    "candidates": [
                        {"name": c.name, "loss": float(c.loss), "costs": _floats(c.costs)}
                        for c in g.candidates
                    ],
                }
                for g in self.groups
            ],
            "budget": _floats(self.budget),
            "pairs": [_pair_to_json(p) for p in self.pairs],
        }


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A solver's answer.

    ``loss``, ``bound`` and ``gap`` are None where the problem is infeasible. ``bound`` is a lower
    bound on the loss of every assignment within the budget; gap = (loss − bound) / max(1, |loss|).
    ``certificate`` holds the Lagrange multipliers and the bound that follows from them alone, or,
    for an infeasible problem, what is attainable. See :mod:`mpq_compile.solve.certificate`.
    """

    status: Status
    assignment: Mapping[str, str]
    loss: float | None
    usage: Mapping[str, float]
    bound: float | None
    gap: float | None
    solver: str
    wall_s: float
    certificate: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Any) -> Solution:
        """Read the form that ``mpq solve --json`` prints.

        What the fields claim, their types too, is for :func:`mpq_compile.check` to judge.

        Raises:
            PlanError: It is not an object with these fields.
        """
        names = [f.name for f in fields(cls)]
        # What `mpq solve --check` adds is no part of the answer.
        top = read_object(data, "solution", required=names, optional=("check",))
        return cls(**{name: top[name] for name in names})

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON-ready data."""
        return {
            "status": self.status,
            "assignment": dict(self.assignment),
            "loss": self.loss,
            "usage": dict(self.usage),
            "bound": self.bound,
            "gap": self.gap,
            "solver": self.solver,
            "wall_s": self.wall_s,
            "certificate": dict(self.certificate),
        }


def usage_axes(problem: Problem) -> tuple[str, ...]:
    """Return the axes whose usage is known: the budget's, then those that every candidate has."""
    candidates = [c for g in problem.groups for c in g.candidates]
    common = [a for a in candidates[0].costs if all(a in c.costs for c in candidates)]
    return tuple(dict.fromkeys([*problem.budget, *common]))


def evaluate(problem: Problem, assignment: Mapping[str, str]) -> tuple[float, dict[str, float]]:
    """Return the loss of an assignment and its usage by axis, both summed without rounding error.

    The loss is infinite where a pair forbids the combination.

    Raises:
        PlanError: A group is missing from the assignment, or a group or candidate is unknown.
    """
    _check_assignment(problem, assignment)
    chosen = {g.name: _index(g, assignment[g.name]) for g in problem.groups}
    terms = [g.candidates[chosen[g.name]] for g in problem.groups]
    axes = usage_axes(problem)
    losses = [c.loss for c in terms]
    costs = {axis: [c.costs[axis] for c in terms] for axis in axes}
    for pair in problem.pairs:
        i, j = chosen[pair.a], chosen[pair.b]
        losses.append(_entry(pair.loss, i, j))
        for axis, matrix in pair.costs.items():
            if matrix[i][j] is None:
                losses.append(math.inf)
            elif axis in costs:
                costs[axis].append(_entry(matrix, i, j))
    return math.fsum(losses), {axis: math.fsum(values) for axis, values in costs.items()}


def fits(usage: Mapping[str, float], budget: Mapping[str, float]) -> bool:
    """Return whether usage ≤ budget on every axis, inclusive, relative tolerance 1e-9."""
    return all(usage[axis] <= limit_of(bound) for axis, bound in budget.items())


def limit_of(budget: float) -> float:
    """Return the largest usage that counts as within ``budget``."""
    return budget + RELATIVE_TOLERANCE * abs(budget)


def relative_gap(loss: float, bound: float) -> float:
    """Return (loss − bound) / max(1, |loss|), and 0 where rounding alone makes it negative."""
    return max(0.0, loss - bound) / max(1.0, abs(loss))


def _entry(matrix: Matrix | None, i: int, j: int) -> float:
    if matrix is None:
        return 0.0
    value = matrix[i][j]
    return math.inf if value is None else value


def _index(group: Group, candidate: str) -> int:
    names = [c.name for c in group.candidates]
    if candidate in names:
        return names.index(candidate)
    refuse(
        f"assignment[{group.name!r}]",
        f"unknown candidate {candidate!r}",
        expected=f"one of {', '.join(names)}",
        found=candidate,
        remedy=nearest(str(candidate), names),
    )


def _check_assignment(problem: Problem, assignment: Mapping[str, str]) -> None:
    names = {g.name for g in problem.groups}
    odd = [n for n in assignment if n not in names] + sorted(names - set(assignment))
    if odd:
        refuse(
            f"assignment[{odd[0]!r}]",
            "unknown group" if odd[0] in assignment else "the group has no candidate",
            expected="exactly the problem's groups",
            found=odd[0] if odd[0] in assignment else "nothing",
            remedy=nearest(str(odd[0]), names) if odd[0] in assignment else "choose one for it",
        )


def _read_group(data: Any, where: str) -> Group:
    top = read_object(data, where, required=("name", "candidates"))
    candidates = read_list(top["candidates"], f"{where}.candidates", nonempty=True)
    return Group(
        name=read_name(top["name"], f"{where}.name"),
        candidates=tuple(
            _read_candidate(c, f"{where}.candidates[{i}]") for i, c in enumerate(candidates)
        ),
    )


def _read_candidate(data: Any, where: str) -> CandidateTerm:
    top = read_object(data, where, required=("name", "loss"), optional=("costs",))
    return CandidateTerm(
        name=read_name(top["name"], f"{where}.name"),
        loss=read_number(top["loss"], f"{where}.loss"),
        costs=read_numbers(top.get("costs", {}), f"{where}.costs"),
    )


def _read_pair(data: Any, where: str) -> Pair:
    top = read_object(data, where, required=("a", "b"), optional=("loss", "costs"))
    costs = top.get("costs", {})
    if not isinstance(costs, Mapping):
        refuse(
            f"{where}.costs",
            "not an object",
            expected="an object of matrices by axis",
            found=costs,
            remedy='write {"latency_us": [[...], ...]}',
        )
    loss = top.get("loss")
    return Pair(
        a=read_name(top["a"], f"{where}.a"),
        b=read_name(top["b"], f"{where}.b"),
        loss=None if loss is None else _rows(loss, f"{where}.loss"),
        costs={axis: _rows(matrix, f"{where}.costs.{axis}") for axis, matrix in costs.items()},
    )


def _rows(value: Any, where: str) -> Matrix:
    """Return rows of entries as they are; sizes and entries are checked by ``Problem``."""
    rows = read_list(value, where)
    return tuple(tuple(read_list(row, f"{where}[{i}]")) for i, row in enumerate(rows))


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _pair_to_json(pair: Pair) -> dict[str, Any]:
    data: dict[str, Any] = {"a": pair.a, "b": pair.b}
    if pair.loss is not None:
        data["loss"] = [list(row) for row in pair.loss]
    data["costs"] = {axis: [list(row) for row in m] for axis, m in pair.costs.items()}
    return data

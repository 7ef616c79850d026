"""Choice of one candidate per group under budgets: exactly, by the published methods, or, for any
objective, by swarms (:func:`minimize_black_box`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpq_compile.errors import PlanError
from mpq_compile.registry import SOLVERS
from mpq_compile.solve.black_box import BlackBox, Minimum, minimize_black_box
from mpq_compile.solve.curve import Frontier, frontier
from mpq_compile.solve.pareto import CurvePoint, pareto_curve
from mpq_compile.solve.problem import (
    CandidateTerm,
    Group,
    Pair,
    Problem,
    Solution,
    evaluate,
    fits,
)
from mpq_compile.solve.reading import read_number

__all__ = [
    "BlackBox",
    "CandidateTerm",
    "CurvePoint",
    "Frontier",
    "Group",
    "Minimum",
    "Pair",
    "Problem",
    "Solution",
    "evaluate",
    "fits",
    "minimize_black_box",
    "pareto_curve",
    "frontier",
    "solve",
    "solve_json",
]


def solve(
    problem: Problem, solver: str = "exact", *, time_limit_s: float | None = None
) -> Solution:
    """Solve ``problem`` with the solver of that name.

    Raises:
        PlanError: ``problem`` is none, or the time limit is not a positive number.
        MpqError: The solver is unknown, or the time was over before anything that fits was found.

    >>> group = Group(name="g", candidates=(
    ...     CandidateTerm(name="w8a8", loss=0.1, costs={"size_bytes": 8.0}),
    ...     CandidateTerm(name="w4a8", loss=0.3, costs={"size_bytes": 4.0}),
    ... ))
    >>> dict(solve(Problem(groups=(group,), budget={"size_bytes": 6.0})).assignment)
    {'g': 'w4a8'}
    """
    run = SOLVERS.load(solver)
    if not isinstance(problem, Problem):
        raise PlanError(
            "not a Problem",
            where="solve",
            expected="a Problem",
            found=type(problem).__name__,
            remedy="read JSON with Problem.from_json, or call solve_json",
        )
    if time_limit_s is not None and not read_number(time_limit_s, "time_limit_s") > 0:
        raise PlanError(
            "a time limit must be a positive number",
            where="time_limit_s",
            expected="seconds above 0, or None for no limit",
            found=time_limit_s,
            remedy="correct the number, or leave it out",
        )
    solution: Solution = run(problem, time_limit_s=time_limit_s)
    return solution


def solve_json(
    data: Mapping[str, Any], solver: str = "exact", *, time_limit_s: float | None = None
) -> dict[str, Any]:
    """Solve a problem in its JSON form and return the answer in its JSON form.

    Raises:
        PlanError: ``data`` is not a valid problem.
        MpqError: As :func:`solve`.
    """
    return solve(Problem.from_json(data), solver, time_limit_s=time_limit_s).to_json()

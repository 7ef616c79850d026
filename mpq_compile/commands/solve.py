"""``mpq solve``: solve a problem of bits in its JSON form. Imports neither torch nor TVM."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mpq_compile.commands import options
from mpq_compile.commands.check import as_data
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_json
from mpq_compile.commands.views import number
from mpq_compile.errors import PlanError

if TYPE_CHECKING:
    from mpq_compile.solve.problem import Problem, Solution


def solve(
    problem: Annotated[
        Path,
        typer.Argument(
            metavar="PROBLEM.json", help="The problem, or - for standard input.", show_default=False
        ),
    ],
    solver: options.Solver = "exact",
    time_limit_s: Annotated[
        float | None, typer.Option("--time-limit-s", help="Stop with the best found so far.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Verify the answer without any of the solvers' code.")
    ] = False,
    as_json: options.Json = False,
) -> Outcome:
    """Choose one candidate for each group: least loss within the budget, with a proof."""
    if time_limit_s is not None and not 0 < time_limit_s < float("inf"):
        raise PlanError(
            "a time limit must be a positive number",
            where="--time-limit-s",
            expected="a finite number above 0",
            found=time_limit_s,
            remedy="correct the number, or leave the option out",
        )
    from mpq_compile.solve import Problem
    from mpq_compile.solve import solve as run

    read = Problem.from_json(read_json(problem))
    answer = run(read, solver, time_limit_s=time_limit_s)
    solution = answer.to_json()
    if check:
        solution["check"] = _verified(read, answer)
    wrong = check and not solution["check"]["ok"]
    return Outcome(
        data=solution,
        show=lambda console: _show(console, solution),
        exit_code=1 if wrong or answer.status == "infeasible" else 0,
    )


def _verified(problem: Problem, answer: Solution) -> dict[str, Any]:
    """Return what the checker says of an answer."""
    from mpq_compile.solve.certificate import check

    return as_data(check(problem, answer))


def _show(console: Console, solution: dict[str, Any]) -> None:
    console.print(f"{solution['status']} by {solution['solver']}, {solution['wall_s']:.3f} s")
    if "check" in solution:
        console.print(f"check: {solution['check']['summary']}")
    if solution["status"] == "infeasible":
        console.print(solution["certificate"].get("reason", ""))
        return
    table = Table("group", "candidate")
    for group, name in solution["assignment"].items():
        table.add_row(group, name)
    console.print(table)
    bound, gap = number(solution["bound"]), number(solution["gap"])
    console.print(f"loss {number(solution['loss'])}, bound {bound}, gap {gap}")
    for axis, value in solution["usage"].items():
        console.print(f"{axis}: {number(value)}")

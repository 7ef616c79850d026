"""``mpq solve``: solve a problem of bits in its JSON form. Imports neither torch nor TVM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_json
from mpq_compile.commands.views import number
from mpq_compile.errors import PlanError


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
    from mpq_compile.solve import solve_json

    solution = solve_json(read_json(problem), solver, time_limit_s=time_limit_s)
    infeasible = solution["status"] == "infeasible"
    return Outcome(
        data=solution,
        show=lambda console: _show(console, solution),
        exit_code=1 if infeasible else 0,
    )


def _show(console: Console, solution: dict[str, Any]) -> None:
    console.print(f"{solution['status']} by {solution['solver']}, {solution['wall_s']:.3f} s")
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

"""``mpq check``: verify a proof with none of the solvers' code. Imports neither torch nor TVM."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_json, read_plan

if TYPE_CHECKING:
    from mpq_compile.solve.certificate import Report


def check(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PLAN|DIR|PROBLEM.json",
            help="A plan, an artifact, or a problem with its answer.",
            show_default=False,
        ),
    ],
    answer: Annotated[
        Path | None,
        typer.Argument(
            metavar="ANSWER.json", help="What `mpq solve --json` printed of the problem."
        ),
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Verify what a plan, or an answer of `mpq solve`, claims: loss, usage, bound, optimality."""
    report = _of_plan(source) if answer is None else _of_answer(source, answer)
    return Outcome(
        data=as_data(report),
        show=lambda console: console.print(report.summary, highlight=False, soft_wrap=True),
        exit_code=0 if report.ok else 1,
    )


def as_data(report: Report) -> dict[str, Any]:
    """Return what the checker says."""
    return {"ok": report.ok, "summary": report.summary, **asdict(report)}


def _of_plan(source: Path) -> Report:
    from mpq_compile.solve.plan_proof import check_plan

    return check_plan(read_plan(source))


def _of_answer(problem: Path, answer: Path) -> Report:
    from mpq_compile.solve.certificate import check as check_solution
    from mpq_compile.solve.problem import Problem, Solution

    read = Problem.from_json(read_json(problem))
    return check_solution(read, Solution.from_json(read_json(answer)))

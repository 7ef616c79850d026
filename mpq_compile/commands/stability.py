"""``mpq stability``: would more calibration data change the assignment?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from mpq_compile.commands import options
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.request import Request
from mpq_compile.commands.views import number

if TYPE_CHECKING:
    from mpq_compile.sufficiency import Stability


@grouped
def stability(
    model: options.Model,
    data: options.DataFile,
    images: options.Images,
    limits: options.Limits,
    choice: options.Choice,
    recipe: options.Recipe,
    measuring: options.Measuring,
    solver: options.Solver = "exact",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> Outcome:
    """Plan on growing parts of the samples, and hold that against all of them.

    Exit code 1 where half of the samples still lead to another result: give more.
    """
    request = Request(
        model=model,
        data=data,
        images=images,
        limits=limits,
        goal=options.Goal(solver=solver, seed=seed),
        choice=choice,
        recipe=recipe,
        measuring=measuring,
    )
    found = find_stability(request)

    def show(console: Console) -> None:
        console.print(_table(found))
        console.print(found.verdict)

    data_ = {**asdict(found), "enough": found.enough, "verdict": found.verdict}
    return Outcome(data=data_, show=show, exit_code=1 if found.enough is None else 0)


def find_stability(request: Request) -> Stability:
    """Find out what was asked for."""
    loaded = request.load()
    from mpq_compile import sufficiency

    keywords = {name: v for name, v in request.keywords().items() if name != "evaluate"}
    return sufficiency.stability(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        solver=request.goal.solver,
        seed=request.goal.seed,
        **keywords,
    )


def _table(found: Stability) -> Table:
    table = Table("samples", "sites as with all", "loss above that of all", "rank correlation")
    for column in table.columns:
        column.justify = "right"
    for part in found.parts:
        table.add_row(
            str(part.samples),
            f"{100 * part.agreement:.0f} %",
            f"{number(100 * part.excess, digits=2)} %",
            f"{part.correlation:.4f}",
        )
    return table

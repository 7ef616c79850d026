"""``mpq plan``: choose the bits of every site within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome, json_text
from mpq_compile.commands.reading import read_policy
from mpq_compile.commands.request import Request
from mpq_compile.commands.views import show_plan
from mpq_compile.errors import PlanError
from mpq_compile.search.policy import Policy
from mpq_compile.types import Plan


@grouped
def plan(
    model: options.Model,
    data: options.DataFile,
    images: options.Images,
    limits: options.Limits,
    goal: options.Goal,
    choice: options.Choice,
    recipe: options.Recipe,
    measuring: options.Measuring,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", metavar="policy.json", help="Take the bits that `mpq search` found."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="plan.json", help="Write the plan.")
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Choose the bits of every site: least loss within the budget, on the target."""
    request = Request(
        model=model,
        data=data,
        images=images,
        limits=limits,
        goal=goal,
        choice=choice,
        recipe=recipe,
        measuring=measuring,
    )
    if output is not None:
        check_output(output, "the plan")
    made = make_plan(request, None if policy is None else read_policy(policy))
    if output is not None:
        output.write_text(json_text(made.to_json(), indent=1) + "\n", encoding="utf-8")

    def show(console: Console) -> None:
        show_plan(console, made)
        if output is not None:
            console.print(f"plan written to {output}; `mpq explain {output}` shows its table")

    return Outcome(data=made.to_json(), show=show)


def make_plan(request: Request, policy: Policy | None = None) -> Plan:
    """Plan what was asked for, or the bits of a policy."""
    loaded = request.load()
    from mpq_compile import pipeline

    return pipeline.plan(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        policy=policy,
        **request.keywords(),
        **request.goal_keywords(),
    )


def check_output(output: Path, what: str) -> None:
    """Refuse a place that cannot be written before minutes are spent on ``what``."""
    if output.absolute().parent.is_dir() and not output.is_dir():
        return
    raise PlanError(
        f"{what} cannot be written there",
        where=str(output),
        expected="a file in a folder that exists",
        found="a folder" if output.is_dir() else f"no folder {output.parent}",
        remedy="name a file, or create the folder",
    )

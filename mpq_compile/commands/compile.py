"""``mpq compile``: plan, build and measure until the network keeps its budget."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_plan
from mpq_compile.commands.request import Request
from mpq_compile.commands.views import show_notes, show_plan, show_verification
from mpq_compile.errors import ArtifactError, PlanError
from mpq_compile.types import Plan

if TYPE_CHECKING:
    from mpq_compile.runtime.network import CompiledNetwork


@grouped
def compile_model(
    model: options.Model,
    data: options.DataFile,
    images: options.Images,
    limits: options.Limits,
    goal: options.Goal,
    choice: options.Choice,
    recipe: options.Recipe,
    measuring: options.Measuring,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the artifact.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="plan.json", help="Build this plan instead of making one."),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify", help="Do not measure, unless a latency is bounded and no plan given."
        ),
    ] = False,
    as_json: options.Json = False,
) -> Outcome:
    """Build a network within the budget, measure it on the device, and write its artifact."""
    given = None if plan is None else _given(plan, limits, goal, choice, recipe)
    request = Request(
        model=model,
        data=data,
        images=images,
        limits=limits,
        goal=goal,
        choice=choice,
        recipe=recipe,
        measuring=measuring if given is None else replace(measuring, target=given.target),
    )
    check_folder(output)
    network = build(request, given, not no_verify)
    network.save(output)
    return artifact_outcome(network, output)


def build(request: Request, plan: Plan | None, verify: bool) -> CompiledNetwork:
    """Compile what was asked for, or the given plan."""
    loaded = request.load()
    from mpq_compile import pipeline

    return pipeline.compile(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        plan=plan,
        verify=verify,
        **request.keywords(),
        **request.goal_keywords(),
    )


def _given(
    path: Path,
    limits: options.Limits,
    goal: options.Goal,
    choice: options.Choice,
    recipe: options.Recipe,
) -> Plan:
    """Read the plan; refuse options that it has already decided."""
    bounds = (*asdict(limits).values(), goal.max_drop, goal.max_loss)
    decided = {
        "a budget": any(bound is not None for bound in bounds),
        "--minimize": goal.minimize is not None,
        "--candidates": choice.candidates is not None,
        "--constraint": bool(choice.constraint),
        **{f"--{name}": value is not None for name, value in asdict(recipe).items()},
    }
    also = [name for name, given in decided.items() if given]
    if also:
        raise PlanError(
            "a plan has its budget and choices in it",
            where="--plan",
            expected="--plan alone",
            found=f"also {', '.join(also)}",
            remedy="leave them out, or make another plan with `mpq plan`",
        )
    return read_plan(path)


def check_folder(folder: Path) -> None:
    """Refuse a place that cannot be written before minutes are spent on building."""
    if not folder.exists():
        return
    if folder.is_dir() and ((folder / "manifest.json").is_file() or not any(folder.iterdir())):
        return
    raise ArtifactError(
        "the artifact cannot be written there",
        where=str(folder),
        expected="a new or empty folder, or an artifact to replace",
        found="other files" if folder.is_dir() else "a file",
        remedy="choose another folder",
    )


def artifact_outcome(network: CompiledNetwork, output: Path) -> Outcome:
    """Return what a command that has written an artifact ends with."""
    verification, stored = network.verification, network.size_bytes
    size_mb = network.plan.budget.get("size_mb", math.inf)
    fits = stored <= size_mb * 1e6
    kept = fits and (verification is None or verification.status in ("accepted", "unbounded"))

    def show(console: Console) -> None:
        show_plan(console, network.plan)
        show_notes(console, network.manifest.notes)
        show_verification(console, verification)
        if not fits:
            console.print(f"size: {stored / 1e6:.4g} MB, above {size_mb:g} MB")
        console.print(f"artifact written to {output}; `mpq explain {output}` shows its table")

    data = {
        "artifact": output,
        "plan": network.plan.to_json(),
        "verification": None if verification is None else asdict(verification),
        "size_bytes": stored,
        "audit": [asdict(row) for row in network.audit],
        "notes": list(network.manifest.notes),
    }
    return Outcome(data=data, show=show, exit_code=0 if kept else 1)

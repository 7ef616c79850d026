"""``mpq compile``: plan, build and measure until the network keeps its budget."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.evaluation import read_evaluate
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_plan
from mpq_compile.commands.request import Request, read_budget, read_candidates, read_constraints
from mpq_compile.commands.views import show_notes, show_plan, show_verification
from mpq_compile.errors import ArtifactError, PlanError
from mpq_compile.types import Plan

if TYPE_CHECKING:
    from mpq_compile.runtime.network import CompiledNetwork


def compile_model(
    model: options.Model,
    data: options.DataFile,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the artifact.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="plan.json", help="Build this plan instead of making one."),
    ] = None,
    latency_ms: options.LatencyMs = None,
    latency_p95_ms: options.LatencyP95Ms = None,
    size_mb: options.SizeMb = None,
    bops: options.Bops = None,
    peak_activation_mb: options.PeakActivationMb = None,
    energy_mj: options.EnergyMj = None,
    avg_bits: options.AvgBits = None,
    max_drop: options.MaxDrop = None,
    max_loss: options.MaxLoss = None,
    minimize: options.Minimize = None,
    evaluate: options.Evaluate = None,
    evaluations: options.Evaluations = 16,
    target: options.Target = "local",
    metric: options.Metric = "sqnr",
    solver: options.Solver = "exact",
    correction: options.Correction = None,
    rounding: options.Rounding = None,
    candidates: options.Candidates = None,
    constraint: options.Constraint = None,
    allow_float: options.AllowFloat = False,
    no_tune: options.NoTune = False,
    measure_s: options.MeasureS = None,
    seed: options.Seed = 0,
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify", help="Do not measure, unless a latency is bounded and no plan given."
        ),
    ] = False,
    as_json: options.Json = False,
) -> Outcome:
    """Build a network within the budget, measure it on the device, and write its artifact."""
    request = Request(
        model=model,
        data=data,
        target=target,
        budget=read_budget(
            latency_ms=latency_ms,
            latency_p95_ms=latency_p95_ms,
            size_mb=size_mb,
            bops=bops,
            peak_activation_mb=peak_activation_mb,
            energy_mj=energy_mj,
            avg_bits=avg_bits,
            max_drop=max_drop,
            max_loss=max_loss,
        ),
        minimize=minimize,
        evaluate=read_evaluate(evaluate),
        evaluations=evaluations,
        metric=metric,
        solver=solver,
        correction=correction,
        rounding=rounding,
        candidates=read_candidates(candidates),
        constraints=read_constraints(constraint),
        allow_float=allow_float,
        seed=seed,
        tuned=not no_tune,
        measure_s=measure_s,
    )
    _check_folder(output)
    given = None if plan is None else _given(plan, request)
    network = build(
        request if given is None else replace(request, target=given.target), given, not no_verify
    )
    network.save(output)
    return _outcome(network, output)


def build(request: Request, plan: Plan | None, verify: bool) -> CompiledNetwork:
    """Compile what was asked for, or the given plan."""
    loaded = request.load()
    from mpq_compile import pipeline

    return pipeline.compile(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        target=request.target,
        budget=request.budget,
        plan=plan,
        metric=request.metric,
        solver=request.solver,
        **request.weights,
        candidates=request.candidates,
        constraints=request.constraints,
        seed=request.seed,
        minimize=request.minimize,
        evaluate=request.evaluate,
        evaluations=request.evaluations,
        allow_float=request.allow_float,
        tuned=request.tuned,
        measure_s=request.measure_s,
        verify=verify,
    )


def _given(path: Path, request: Request) -> Plan:
    """Read the plan; refuse options that it has already decided."""
    decided = {
        "a budget": bool(request.budget.given()),
        "--minimize": request.minimize is not None,
        "--candidates": request.candidates is not None,
        "--constraint": bool(request.constraints),
        **{f"--{name}": True for name in request.weights},
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


def _check_folder(folder: Path) -> None:
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


def _outcome(network: CompiledNetwork, output: Path) -> Outcome:
    verification = network.verification
    kept = verification is None or verification.status in ("accepted", "unbounded")

    def show(console: Console) -> None:
        show_plan(console, network.plan)
        show_notes(console, network.manifest.notes)
        show_verification(console, verification)
        console.print(f"artifact written to {output}; `mpq explain {output}` shows its table")

    data = {
        "artifact": output,
        "plan": network.plan.to_json(),
        "verification": None if verification is None else asdict(verification),
        "size_bytes": network.size_bytes,
        "audit": [asdict(row) for row in network.audit],
        "notes": list(network.manifest.notes),
    }
    return Outcome(data=data, show=show, exit_code=0 if kept else 1)

"""``mpq plan``: choose the bits of every site within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.evaluation import read_evaluate
from mpq_compile.commands.outcome import Outcome, json_text
from mpq_compile.commands.request import Request, read_budget, read_candidates, read_constraints
from mpq_compile.commands.views import show_plan
from mpq_compile.errors import PlanError
from mpq_compile.types import Plan


def plan(
    model: options.Model,
    data: options.DataFile,
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
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="plan.json", help="Write the plan.")
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Choose the bits of every site: least loss within the budget, on the target."""
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
    _check_output(output)
    made = make_plan(request)
    if output is not None:
        output.write_text(json_text(made.to_json(), indent=1) + "\n", encoding="utf-8")

    def show(console: Console) -> None:
        show_plan(console, made)
        if output is not None:
            console.print(f"plan written to {output}; `mpq explain {output}` shows its table")

    return Outcome(data=made.to_json(), show=show)


def make_plan(request: Request) -> Plan:
    """Plan what was asked for."""
    loaded = request.load()
    from mpq_compile import pipeline

    return pipeline.plan(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        target=request.target,
        budget=request.budget,
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
    )


def _check_output(output: Path | None) -> None:
    """Refuse a place that cannot be written before minutes are spent on planning."""
    if output is None or (output.absolute().parent.is_dir() and not output.is_dir()):
        return
    raise PlanError(
        "the plan cannot be written there",
        where=str(output),
        expected="a file in a folder that exists",
        found="a folder" if output.is_dir() else f"no folder {output.parent}",
        remedy="name a file, or create the folder",
    )

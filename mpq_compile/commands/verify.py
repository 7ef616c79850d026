"""``mpq verify``: does an artifact keep its budget on its device, or on another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.request import read_budget
from mpq_compile.commands.views import show_notes, show_verification
from mpq_compile.cost.profile import load_profile
from mpq_compile.cost.targets import running_device
from mpq_compile.errors import MpqError
from mpq_compile.runtime.artifact import WEIGHTS, open_artifact
from mpq_compile.runtime.network import own_device
from mpq_compile.runtime.verify import PROCESSES, verify_artifact
from mpq_compile.types import Plan, Verification


def verify(
    artifact: options.Artifact,
    target: options.RunTarget = None,
    latency_ms: options.LatencyMs = None,
    latency_p95_ms: options.LatencyP95Ms = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Fresh processes to measure in.")
    ] = PROCESSES,
    as_json: options.Json = False,
) -> Outcome:
    """Check the hashes, measure latency in fresh processes, and judge it against the budget.

    The budget is the plan's own, unless a latency is given. Exit code 1 where it is not met or
    the measurement does not settle it.
    """
    given = read_budget(latency_ms=latency_ms, latency_p95_ms=latency_p95_ms).given()
    manifest, plan = open_artifact(artifact)
    budget, notes = (given, []) if given else own_budget(plan)
    size_bytes = (artifact / WEIGHTS).stat().st_size
    fits = size_bytes <= budget.get("size_mb", float("inf")) * 1e6
    device = own_device(manifest) if target is None else running_device(target)
    verification = verify_artifact(artifact, device, budget, processes)
    return _outcome(verification, budget, size_bytes, fits, notes)


def own_budget(plan: Plan) -> tuple[Mapping[str, float], list[str]]:
    """Return what can be checked here of a plan's budget, and what is to be said of the rest.

    Latencies on an analytic target are those of another device: this one cannot keep or miss them.
    """
    try:
        analytic = not load_profile(plan.target).runs_networks
    except MpqError:  # its profile's file is elsewhere
        analytic = False
    if not analytic:
        return plan.budget, []
    kept = {name: value for name, value in plan.budget.items() if "latency" not in name}
    if kept == plan.budget:
        return kept, []
    return kept, [f"the latency budget is for {plan.target}, which cannot be measured here"]


def _outcome(
    verification: Verification,
    budget: Mapping[str, float],
    size_bytes: int,
    fits: bool,
    notes: Sequence[str],
) -> Outcome:
    kept = fits and verification.status in ("accepted", "unbounded")

    def show(console: Console) -> None:
        show_verification(console, verification)
        show_notes(console, notes)
        if "size_mb" in budget:
            verdict = "within" if fits else "above"
            console.print(f"size: {size_bytes / 1e6:.4g} MB, {verdict} {budget['size_mb']:g} MB")
        console.print("the budget is kept" if kept else "the budget is not shown to be kept")

    data = {
        **asdict(verification),
        "budget": dict(budget),
        "size_bytes": size_bytes,
        "size_within_budget": fits if "size_mb" in budget else None,
        "kept": kept,
        "notes": notes,
    }
    return Outcome(data=data, show=show, exit_code=0 if kept else 1)

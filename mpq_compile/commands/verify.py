"""``mpq verify``: does an artifact keep its budget on this machine?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.request import read_budget
from mpq_compile.commands.views import show_verification
from mpq_compile.runtime.artifact import WEIGHTS, open_artifact
from mpq_compile.runtime.verify import PROCESSES, verify_artifact
from mpq_compile.types import Verification


def verify(
    artifact: options.Artifact,
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
    _, plan = open_artifact(artifact)
    budget = given or dict(plan.budget)
    size_bytes = (artifact / WEIGHTS).stat().st_size
    fits = size_bytes <= budget.get("size_mb", float("inf")) * 1e6
    return _outcome(verify_artifact(artifact, budget, processes), budget, size_bytes, fits)


def _outcome(
    verification: Verification, budget: Mapping[str, float], size_bytes: int, fits: bool
) -> Outcome:
    kept = fits and verification.status in ("accepted", "unbounded")

    def show(console: Console) -> None:
        show_verification(console, verification)
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
    }
    return Outcome(data=data, show=show, exit_code=0 if kept else 1)

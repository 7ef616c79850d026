"""``mpq explain``: why a plan is what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.allocate import OBJECTIVE_AXIS
from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_plan
from mpq_compile.commands.views import (
    audit_table,
    candidate_table,
    show_notes,
    show_plan,
    show_verification,
)
from mpq_compile.runtime.artifact import open_artifact, read_verification
from mpq_compile.types import AuditRow, Plan, Verification


def explain(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR|PLAN", help="Artifact, or a plan.json.", show_default=False),
    ],
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FILE", help="Draw the plan as a picture.")
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Print the table of sites and candidates, the certificate and the notes."""
    if source.is_dir():
        manifest, plan = open_artifact(source)
        audit, notes = manifest.audit, list(manifest.notes)
        verification = read_verification(source)
    else:
        plan, audit, notes, verification = read_plan(source), [], [], None
    if png is not None:
        from mpq_compile.report.plot import save_plan_picture

        save_plan_picture(plan, png)
    return _outcome(plan, audit, notes, verification, png)


def _minimised(plan: Plan) -> str:
    """Return what the multipliers are counted in: the cost that was minimised, or the loss."""
    return OBJECTIVE_AXIS[plan.minimised] if plan.minimised else "loss"


def _outcome(
    plan: Plan,
    audit: Sequence[AuditRow],
    notes: Sequence[str],
    verification: Verification | None,
    png: Path | None,
) -> Outcome:
    def show(console: Console) -> None:
        console.print(candidate_table(plan))
        show_plan(console, plan)
        multipliers = plan.certificate.get("multipliers") or {}
        for axis, price in multipliers.items():
            console.print(f"multiplier:  {price:.4g} less {_minimised(plan)} for one more {axis}")
        show_notes(console, notes)
        if audit:
            console.print(audit_table(audit))
            show_verification(console, verification)
        if png is not None:
            console.print(f"picture written to {png}")

    data = {
        "plan": plan.to_json(),
        "audit": [asdict(row) for row in audit],
        "notes": [*plan.notes, *notes],
        "verification": None if verification is None else asdict(verification),
        "png": png,
    }
    return Outcome(data=data, show=show)

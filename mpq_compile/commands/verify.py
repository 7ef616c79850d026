"""``mpq verify``: does an artifact keep its budget on its device, or on another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer
from rich.console import Console

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.request import read_budget
from mpq_compile.commands.views import bounds, show_notes, show_verification
from mpq_compile.cost.profile import runs_networks
from mpq_compile.cost.targets import running_device
from mpq_compile.runtime.artifact import WEIGHTS, open_artifact
from mpq_compile.runtime.network import own_device
from mpq_compile.runtime.verify import PROCESSES, verify_artifact
from mpq_compile.types import Plan, Verification

# What a run on the device decides; the other bounds hold of the plan itself.
_RUN = ("latency_ms", "latency_p95_ms", "energy_mj")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What of a budget can be judged here.

    Args:
        budget: Bounds to judge.
        unchecked: Bounds that nothing here can keep or miss.
        notes: Why not.
    """

    budget: Mapping[str, float]
    unchecked: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def verify(
    artifact: options.Artifact,
    target: options.RunTarget = None,
    latency_ms: options.LatencyMs = None,
    latency_p95_ms: options.LatencyP95Ms = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            min=2,
            help="Fresh processes, up to three times as many while the median is uncertain.",
        ),
    ] = PROCESSES,
    as_json: options.Json = False,
) -> Outcome:
    """Check the hashes, measure latency in fresh processes, and judge it against the budget.

    The budget is the plan's own, unless a latency is given. Exit code 1 where it is not met or
    the measurement does not settle it, or where a part of it cannot be checked here.
    """
    given = read_budget(latency_ms=latency_ms, latency_p95_ms=latency_p95_ms).given()
    manifest, plan = open_artifact(artifact)
    checked = Checked(budget=given) if given else own_budget(plan)
    device = own_device(manifest) if target is None else running_device(target)
    verification = verify_artifact(artifact, device, checked.budget, processes)
    size_bytes = (artifact / WEIGHTS).stat().st_size
    return _outcome(verification, _without_unmeasured_energy(checked, verification), size_bytes)


def own_budget(plan: Plan) -> Checked:
    """Return what can be checked here of a plan's budget.

    Latency and energy on a target that runs no networks are those of another device: this one
    cannot keep or miss them.
    """
    elsewhere = not runs_networks(plan.target)
    unchecked = {k: v for k, v in plan.budget.items() if elsewhere and k in _RUN}
    return Checked(
        budget={name: value for name, value in plan.budget.items() if name not in unchecked},
        unchecked=unchecked,
        notes=[f"{', '.join(unchecked)}: of {plan.target}, which cannot be measured here"]
        if unchecked
        else [],
    )


def _without_unmeasured_energy(checked: Checked, verification: Verification) -> Checked:
    """Move a bound on energy to what is unchecked, where the device does not tell its energy."""
    if "energy_mj" not in checked.budget or verification.energy_source == "rapl":
        return checked
    budget = dict(checked.budget)
    return Checked(
        budget=budget,
        unchecked={**checked.unchecked, "energy_mj": budget.pop("energy_mj")},
        notes=[*checked.notes, "energy_mj: the device does not tell the energy it takes"],
    )


def _outcome(verification: Verification, checked: Checked, size_bytes: int) -> Outcome:
    budget, unchecked = checked.budget, checked.unchecked
    fits = size_bytes <= budget.get("size_mb", float("inf")) * 1e6
    within = fits and verification.status in ("accepted", "unbounded")
    kept = None if within and unchecked else within

    def show(console: Console) -> None:
        console.print(f"budget: {bounds({**budget, **unchecked})}")
        show_verification(console, verification)
        show_notes(console, checked.notes)
        if "size_mb" in budget:
            verdict = "within" if fits else "above"
            console.print(f"size: {size_bytes / 1e6:.4g} MB, {verdict} {budget['size_mb']:g} MB")
        if unchecked:
            console.print(f"not checked: {bounds(unchecked)}")
        if budget or unchecked:
            console.print("the budget is kept" if kept else "the budget is not shown to be kept")

    data = {
        **asdict(verification),
        "budget": dict(budget),
        "not_checked": dict(unchecked),
        "size_bytes": size_bytes,
        "size_within_budget": fits if "size_mb" in budget else None,
        "kept": kept,
        "notes": checked.notes,
    }
    return Outcome(data=data, show=show, exit_code=0 if kept else 1)

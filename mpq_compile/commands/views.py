"""How plans, verifications and audits look on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mpq_compile.types import NETWORK, AuditRow, Plan, Predicted, Verification

_UNITS = {
    "latency_ms": "ms",
    "latency_p95_ms": "ms",
    "size_mb": "MB",
    "peak_activation_mb": "MB",
    "energy_mj": "mJ",
}


def number(value: float | None, scale: float = 1.0, digits: int = 4) -> str:
    """Return a number with few digits, or a dash where it is not known (None or NaN)."""
    return "–" if value is None or value != value else f"{value * scale:.{digits}g}"


def show_plan(console: Console, plan: Plan) -> None:
    """Print budget, prediction, loss, certificate and notes of a plan."""
    predicted = plan.predicted
    counts = Counter(plan.assignment.values())
    certificate = plan.certificate
    rows = {
        "target": plan.target,
        "budget": bounds(plan.budget),
        "sites": ", ".join(f"{count} × {name}" for name, count in counts.most_common()),
        "predicted": f"{number(predicted.latency_ms)} ms{_interval(predicted)}, "
        f"{number(predicted.size_bytes, 1e-6)} MB, {number(predicted.bops)} BOPs, "
        f"{number(predicted.avg_bits)} bits a weight",
        "loss": f"{number(plan.loss)} ({plan.metric})",
        "certificate": f"{_proven(plan)}, gap {number(certificate.get('gap'))}",
    }
    for name, value in rows.items():
        _line(console, name, value)
    show_notes(console, plan.notes)


def _proven(plan: Plan) -> str:
    """Say what is proven, and of what: the metric's loss, or a cost that was minimised."""
    certificate = plan.certificate
    if not certificate and plan.solver == "given":
        return "none: the assignment was given"
    bound = f"bound {number(certificate.get('bound'))}"
    if certificate.get("objective") == NETWORK:
        return f"chosen by the network's own loss; of the {plan.metric} loss: {bound}"
    named = f"{certificate.get('status', 'none')} by {plan.solver}"
    return f"{named}, of the least {plan.minimised}" if plan.minimised else f"{named}, {bound}"


def show_notes(console: Console, notes: Sequence[str]) -> None:
    """Print notes, one a line."""
    for note in notes:
        _line(console, "note", note)


def _line(console: Console, name: str, value: str) -> None:
    console.print(Text.assemble((f"{name + ':':<13}", "bold"), value))


def _interval(predicted: Predicted) -> str:
    if predicted.latency_ms_upper95 is None:
        return ""
    low, high = predicted.latency_ms_lower95, predicted.latency_ms_upper95
    return f" (95 %: {number(low)} to {number(high)} ms)"


def bounds(budget: Mapping[str, float]) -> str:
    """Spell a budget: ``latency_ms ≤ 2 ms, size_mb ≤ 1 MB``."""
    parts = [f"{name} ≤ {value:g} {_UNITS.get(name, '')}".strip() for name, value in budget.items()]
    return ", ".join(parts) or "none"


def candidate_table(plan: Plan) -> Table:
    """Return site × candidate: loss ± standard error, latency, size, and what was chosen.

    Sites that are tied have one row for each candidate, with their sums: they choose together.
    """
    table = Table("site", "candidate", "loss", "latency [µs]", "size [kB]", "chosen")
    for column in table.columns[2:5]:
        column.justify = "right"
    table.columns[0].overflow = "fold"
    last = None
    for row in _tied_rows(plan):
        if last not in (None, row["site"]):
            table.add_section()
        table.add_row(*_cells(row, first=row["site"] != last), style="bold" * row["chosen"])
        last = row["site"]
    return table


def _tied_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each group and candidate: that of its one site, or the sum of several.

    Candidates that some of its sites do not have are no choice of the group.
    """
    rows_of: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    sites: dict[str, set[str]] = {}
    for row in plan.table:
        group = row.get("group", row["site"])
        rows_of.setdefault((group, row["candidate"]), []).append(row)
        sites.setdefault(group, set()).add(row["site"])
    if not rows_of:  # an assignment that was given: nothing was compared
        return [_given(site, candidate) for site, candidate in plan.assignment.items()]
    found = sorted(rows_of, key=lambda key: list(sites).index(key[0]))
    return [_sum_of(rows_of[key]) for key in found if len(rows_of[key]) == len(sites[key[0]])]


def _given(site: str, candidate: str) -> dict[str, Any]:
    costs = {"loss": None, "latency_us": None, "latency_source": None, "size_bytes": None}
    return {"site": site, "candidate": candidate, "chosen": True, **costs}


def _sum_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if len(rows) == 1:
        return dict(rows[0])
    total = dict(rows[0])  # the first stands for the losses of all, and for their spread
    total["site"] += f"\n  and {len(rows) - 1} tied to it"
    for column in ("loss", "latency_us", "size_bytes"):
        values = [row[column] for row in rows]
        total[column] = None if None in values else sum(values)
    if any(row["latency_source"] == "estimated" for row in rows):
        total["latency_source"] = "estimated"
    return total


def _cells(row: Mapping[str, Any], first: bool) -> list[str]:
    spread = row.get("spread")
    return [
        row["site"] if first else "",
        row["candidate"],
        number(row["loss"]) + (f" ± {number(spread, digits=2)}" if spread else ""),
        number(row["latency_us"]) + (" (est.)" if row["latency_source"] == "estimated" else ""),
        number(row["size_bytes"], 1e-3),
        "●" if row["chosen"] else "",
    ]


def audit_table(rows: Sequence[AuditRow]) -> Table:
    """Return what really runs at each site."""
    table = Table("site", "requested", "bits stored", "computes in", "kernel", "tier")
    for row in rows:
        cells = (row.site, row.requested, str(row.stored_bits), row.compute, row.kernel, row.tier)
        table.add_row(*cells)
    return table


def show_verification(console: Console, verification: Verification | None) -> None:
    """Print the measured latency and the verdict."""
    if verification is None:
        _line(console, "measured", "not measured")
        return
    v = verification
    _line(
        console,
        "measured",
        f"{number(v.latency_ms)} ms (95 %: {number(v.latency_ms_lower95)} to "
        f"{number(v.latency_ms_upper95)} ms) over {v.samples} calls in {v.processes} processes",
    )
    _line(
        console,
        "percentiles",
        f"p50 {number(v.latency_ms)}, p95 {number(v.latency_p95_ms)}, "
        f"p99 {number(v.latency_p99_ms)} ms",
    )
    _line(console, "memory", f"{v.memory_bytes / 1e6:.4g} MB")
    if v.energy_mj is not None:
        _line(console, "energy", f"{number(v.energy_mj)} mJ a call ({v.energy_source})")
    # Artifacts of before do not say whether it settled, but the verdict does.
    if not v.settled or v.status == "inconclusive":
        _line(console, "machine", f"did not settle: {v.disturbance()}")
    _line(console, "verdict", v.status)

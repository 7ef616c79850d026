"""Bits, size, predicted time and loss of every site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mpq_compile.report.blocks import (
    Block,
    Cell,
    Column,
    Facts,
    Figure,
    Missing,
    Section,
    Table,
)
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.figures import Strip, skyline
from mpq_compile.report.spelling import duration, number, percent, size
from mpq_compile.runtime.trace import Trace
from mpq_compile.types import Candidate, Plan

Row = Mapping[str, Any]

# What is said of times, without and with a trace.
_LEADS = (
    "Times are the latency model's prediction, not measured one by one.",
    "Predicted times are the latency model's; measured ones are those of the kernels below.",
)


def sites_section(evidence: Evidence) -> Section:
    """Return strips over all sites, and the table of them."""
    plan = evidence.plan
    rows = {row["site"]: row for row in plan.table if row["chosen"]}
    blocks: list[Block] = [_overview(plan, rows, evidence.trace), Facts(rows=_totals(plan, rows))]
    if not rows:
        blocks.append(
            Missing(text="Size, time and loss of single sites were not measured for this plan.")
        )
    blocks.append(_table(plan, rows))
    return Section(
        id="sites",
        name="Sites",
        title="Sites",
        lead="Every place in the network whose bits were chosen, in the order of the network. "
        + _LEADS[evidence.trace is not None],
        blocks=blocks,
    )


def tint_of(name: str) -> str:
    """Return the class of the colour of a candidate: one for each width of its weights."""
    return f"b{Candidate.parse(name).weight_bits}"


def _overview(plan: Plan, rows: Mapping[str, Row], trace: Trace | None) -> Figure:
    sites = list(plan.assignment)
    bits = [Candidate.parse(plan.assignment[site]).weight_bits for site in sites]
    strips = [Strip(title="bits of a weight", shares=_shares(bits), most=f"up to {max(bits)}")]
    if rows:
        sizes = [rows[site]["size_bytes"] for site in sites]
        strips.append(
            Strip(title="stored size", shares=_shares(sizes), most=f"up to {size(max(sizes))}")
        )
        times = [rows[site]["latency_us"] or 0.0 for site in sites]
        most = f"up to {duration(max(times) / 1e3)}"
        strips.append(Strip(title="time, predicted", shares=_shares(times), most=most))
    if trace is not None:
        known = trace.of_names()
        spent = [known.get(site, 0.0) for site in sites]
        most = f"up to {duration(max(spent) / 1e3)}"
        strips.append(Strip(title="time, measured", shares=_shares(spent), most=most))
    label = f"{len(sites)} sites in the order of the network; arrow keys go from site to site"
    tints = [tint_of(name) for name in plan.assignment.values()]
    return Figure(
        markup=skyline(strips, tints, label),
        caption=f"{_counts(plan)}. Point at a site, or use the arrow keys; the table below says "
        "the same.",
        readout=True,
    )


def _counts(plan: Plan) -> str:
    counts = Counter(plan.assignment.values()).most_common()
    return ", ".join(f"{count} × {name}" for name, count in counts)


def _shares(values: Sequence[float]) -> list[float]:
    most = max(values)
    return [value / most if most > 0 else 0.0 for value in values]


def _totals(plan: Plan, rows: Mapping[str, Row]) -> list[tuple[str, str]]:
    found = [
        ("sites", str(len(plan.assignment))),
        ("average weight", f"{plan.predicted.avg_bits:.3g} bits"),
    ]
    if not rows:
        return found
    sizes = sum(row["size_bytes"] for row in rows.values())
    found.append(("size of the sites", size(sizes)))
    found.append(("size beside them", size(plan.predicted.size_bytes - sizes)))
    times = sum(row["latency_us"] or 0.0 for row in rows.values()) / 1e3
    if plan.predicted.latency_ms is not None:
        found.append(("time of the sites, predicted", duration(times)))
        rest = plan.predicted.latency_ms - times
        found.append(("between and beside the sites, predicted", duration(rest)))
    return found


def _table(plan: Plan, rows: Mapping[str, Row]) -> Table:
    columns = [Column(title="Site"), Column(title="Choice"), Column(title="Bits", numeric=True)]
    if rows:
        columns += [
            Column(title="Size", numeric=True),
            Column(title="Time, predicted", numeric=True),
            Column(title="Share of time", numeric=True),
            Column(title="Loss ± s.e.", numeric=True),
        ]
    most = _Most(rows)
    return Table(
        name="sites",
        columns=columns,
        rows=[_cells(site, name, rows, most) for site, name in plan.assignment.items()],
        sortable=True,
    )


class _Most:
    """Largest values of the columns, and their sums."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        times = [row["latency_us"] or 0.0 for row in rows.values()]
        self.size = max((row["size_bytes"] for row in rows.values()), default=1.0) or 1.0
        self.time = max(times, default=1.0) or 1.0
        self.total = sum(times) or 1.0


def _cells(site: str, name: str, rows: Mapping[str, Row], most: _Most) -> list[Cell]:
    bits = Candidate.parse(name).weight_bits
    cells = [
        Cell(text=site, code=True),
        Cell(text=name, tint=tint_of(name)),
        # Float weights would dwarf all others: their bar is full.
        Cell(text=str(bits), order=bits, share=min(bits / 16, 1.0), tint=tint_of(name)),
    ]
    return cells + _costs(rows[site], name, most) if rows else cells


def _costs(row: Row, name: str, most: _Most) -> list[Cell]:
    tint, time = tint_of(name), row["latency_us"]
    shares = (row["size_bytes"] / most.size, (time or 0.0) / most.time)
    guessed = " (estimated)" if row["latency_source"] == "estimated" else ""
    spread = row.get("spread")
    loss = number(row["loss"]) + (f" ± {number(spread, 2)}" if spread else "")
    known = None if time is None else time / 1e3
    return [
        Cell(text=size(row["size_bytes"]), order=row["size_bytes"], share=shares[0], tint=tint),
        Cell(text=duration(known) + guessed, order=time or 0.0, share=shares[1], tint=tint),
        Cell(text=percent((time or 0.0) / most.total), order=time or 0.0),
        Cell(text=loss, order=row["loss"]),
    ]

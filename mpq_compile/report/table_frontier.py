"""The trade-off that a plan's own table gives: loss against what adds over sites.

Stored size adds over sites on every target. Latency does where equations or a class give it; on
a device, changes of format cost time between sites, and only ``mpq frontier`` knows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpq_compile.report.frontier import FrontierReport, Point
from mpq_compile.solve.curve import Frontier, frontier
from mpq_compile.solve.problem import CandidateTerm, Group, Problem
from mpq_compile.types import Plan

# Points that are listed: each names the candidate of every site.
LISTED = 120
# The work is bounded: where a table has more breakpoints, some of them are proven by solves.
_STATES, _SOLVES = 20_000, 24
_COLUMNS = {"size_mb": ("size_bytes", 1e6, "MB"), "latency_ms": ("latency_us", 1e3, "ms")}
Row = Mapping[str, Any]


def drawable(plan: Plan, axis: str) -> str | None:
    """Return why the table cannot give the frontier on an axis; None where it can."""
    rows = plan.table
    if not rows:
        return "the plan holds no table of candidates: it was assigned by hand"
    if any("group" not in row for row in rows):
        return "the plan is of a version that did not record which sites share a weight"
    column, factor, _ = _COLUMNS[axis]
    if any(row["loss"] is None or row[column] is None for row in rows):
        return "some losses or costs of the table are not known"
    chosen = [row for row in rows if row["chosen"]]
    if plan.loss is None or not math.isclose(
        plan.loss, math.fsum(row["loss"] for row in chosen), rel_tol=1e-6, abs_tol=1e-12
    ):
        return "pairs of sites lose together, which the table does not hold"
    if axis == "latency_ms" and not _adds(plan, chosen, factor):
        return "latency is no sum over sites here"
    return None


def _adds(plan: Plan, chosen: Sequence[Row], factor: float) -> bool:
    """Tell whether the predicted latency is the sum of the sites', as for described targets."""
    predicted = plan.predicted
    if predicted.latency_ms is None or predicted.latency_ms_upper95 is not None:
        return False
    total = math.fsum(row["latency_us"] for row in chosen) / factor
    return math.isclose(total, predicted.latency_ms, rel_tol=1e-9)


def table_frontier(plan: Plan, axis: str) -> FrontierReport:
    """Return the frontier of a plan's table, whose other bounds are left out."""
    column, factor, unit = _COLUMNS[axis]
    groups = tuple(_group(*entry, column) for entry in _groups(plan.table).items())
    problem = Problem(groups=groups, budget={})
    curve = frontier(problem, column, max_states=_STATES, solves=_SOLVES)
    fixed = _fixed(plan, column)
    listed = np.unique(np.linspace(0, len(curve) - 1, min(LISTED, len(curve))).round().astype(int))
    sites = tuple(dict.fromkeys(row["site"] for row in plan.table))
    others = sorted(set(plan.budget) - {axis})
    return FrontierReport(
        axis=axis,
        unit=unit,
        target=plan.target,
        metric=plan.metric,
        metric_unit="",
        measure="",
        measure_unit="",
        sites=sites,
        points=tuple(_point(curve, i, plan, sites, fixed, factor) for i in listed),
        breakpoints=len(curve),
        complete=curve.complete,
        method=curve.method,
        uniform=tuple(_uniforms(plan, sites, column, fixed, factor)),
        tolerance=0.0,
        inversions=(),
        concordance=None,
        float_score=None,
        budget={},
        notes=[f"what this axis alone allows; {', '.join(others)} left out"] if others else [],
        provenance=plan.provenance,
    )


def _groups(table: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return group → candidate → rows of the sites that share it; for all of them."""
    groups: dict[str, dict[str, list[Row]]] = {}
    members: dict[str, set[str]] = {}
    for row in table:
        groups.setdefault(row["group"], {}).setdefault(row["candidate"], []).append(row)
        members.setdefault(row["group"], set()).add(row["site"])
    return {
        group: {name: rows for name, rows in entry.items() if len(rows) == len(members[group])}
        for group, entry in groups.items()
    }


def _group(name: str, entry: Mapping[str, Sequence[Row]], column: str) -> Group:
    terms = [
        CandidateTerm(
            name=candidate,
            loss=math.fsum(row["loss"] for row in rows),
            costs={column: math.fsum(row[column] for row in rows)},
        )
        for candidate, rows in entry.items()
    ]
    return Group(name=name, candidates=tuple(terms))


def _fixed(plan: Plan, column: str) -> float:
    """Return what the network costs beside its sites."""
    if column != "size_bytes":
        return 0.0
    return plan.predicted.size_bytes - math.fsum(r[column] for r in plan.table if r["chosen"])


def _point(
    curve: Frontier, index: int, plan: Plan, sites: Sequence[str], fixed: float, factor: float
) -> Point:
    chosen = curve.assignment(int(index))
    group_of = {row["site"]: row["group"] for row in plan.table}
    names = tuple(chosen[group_of[site]] for site in sites)
    return Point(
        candidates=names,
        cost=(float(curve.cost[index]) + fixed) / factor,
        loss=float(curve.loss[index]),
        gap=float(curve.gap[index]),
        uniform=names[0] if len(set(names)) == 1 else None,
    )


def _uniforms(
    plan: Plan, sites: Sequence[str], column: str, fixed: float, factor: float
) -> list[Point]:
    """Return one point for each candidate that every site has, by ascending cost."""
    by_name: dict[str, list[Row]] = {}
    for row in plan.table:
        by_name.setdefault(row["candidate"], []).append(row)
    found = [
        Point(
            candidates=(name,) * len(sites),
            cost=(math.fsum(row[column] for row in rows) + fixed) / factor,
            loss=math.fsum(row["loss"] for row in rows),
            uniform=name,
        )
        for name, rows in by_name.items()
        if len(rows) == len(sites)
    ]
    return sorted(found, key=lambda point: (point.cost, point.loss))

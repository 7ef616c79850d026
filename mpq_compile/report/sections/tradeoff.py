"""The frontier between cost and loss, with the chosen point."""

from __future__ import annotations

from markupsafe import Markup

from mpq_compile.report.blocks import Block, Figure, Missing, Section
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.frontier import FrontierReport, Point
from mpq_compile.report.frontier_page import frontier_fragment
from mpq_compile.report.table_frontier import drawable, table_frontier
from mpq_compile.types import Plan

_FROM_TABLE = ("size_mb", "latency_ms")


def tradeoff_section(evidence: Evidence) -> Section:
    """Return the frontiers that were given, and what the plan's own table gives."""
    plan = evidence.plan
    given = {report.axis: report for report in evidence.frontiers}
    blocks: list[Block] = [_drawn(report, plan) for report in evidence.frontiers]
    for axis in sorted(_FROM_TABLE, key=lambda axis: axis not in plan.budget):
        if axis in given:
            continue
        reason = drawable(plan, axis)
        if reason is None:
            blocks.append(_drawn(table_frontier(plan, axis), plan))
        elif axis == "size_mb" or axis in plan.budget:
            blocks.append(
                Missing(
                    text=f"The frontier of {axis} is not drawn: {reason}. "
                    f"mpq frontier --axis {axis} computes it; mpq report --frontier takes it in."
                )
            )
    return Section(
        id="frontier",
        name="Frontier",
        title="Cost against loss",
        lead="Every point is the least loss that the metric allows at its cost. The diamond is "
        "this plan.",
        blocks=blocks,
    )


def _drawn(report: FrontierReport, plan: Plan) -> Figure:
    chosen = chosen_point(report, plan)
    return Figure(markup=Markup(frontier_fragment(report, chosen, level=3)))


def chosen_point(report: FrontierReport, plan: Plan) -> Point | None:
    """Return the plan as a point of a frontier; None where that is of something else."""
    if set(report.sites) != set(plan.assignment) or report.metric != plan.metric:
        return None
    names = tuple(plan.assignment[site] for site in report.sites)
    for point in (*report.points, *report.uniform):
        if point.candidates == names:
            return point
    predicted = plan.predicted
    costs = {
        "size_mb": predicted.size_bytes / 1e6,
        "latency_ms": predicted.latency_ms,
        "bops": float(predicted.bops),
        "energy_mj": predicted.energy_mj,
        "avg_bits": predicted.avg_bits,
    }
    cost = costs[report.axis]
    if cost is None or plan.loss is None:
        return None
    known = {name: value for name, value in costs.items() if value is not None}
    return Point(candidates=names, cost=cost, loss=plan.loss, costs=known)

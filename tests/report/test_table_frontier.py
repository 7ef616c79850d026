"""The frontier that a plan's table gives is that of all assignments."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from report_examples import CHOICE, NAMES, SITES, large, plan

import mpq_compile as mpq
from mpq_compile.report.frontier import FrontierReport
from mpq_compile.report.sections.tradeoff import chosen_point
from mpq_compile.report.table_frontier import LISTED, drawable, table_frontier
from mpq_compile.types import Plan

TIED = {SITES[0]: "tie", SITES[2]: "tie"}


def by_enumeration(found: Plan, tied: bool) -> list[tuple[float, float]]:
    """Return the steps of least loss by ascending size, over all assignments."""
    rows = {(row["site"], row["candidate"]): row for row in found.table}
    fixed = 36
    points = []
    for names in itertools.product(NAMES, repeat=len(SITES)):
        if tied and names[0] != names[2]:
            continue
        chosen = [rows[pair] for pair in zip(SITES, names, strict=True)]
        size = sum(row["size_bytes"] for row in chosen) + fixed
        points.append((size / 1e6, sum(row["loss"] for row in chosen)))
    steps: list[tuple[float, float]] = []
    for size, loss in sorted(points):
        if not steps or loss < steps[-1][1] - 1e-12:
            steps.append((size, loss))
    return steps


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_the_frontier(tied: bool) -> None:
    found = plan({**CHOICE, SITES[0]: "w4a8"}, TIED if tied else None)
    report = table_frontier(found, "size_mb")
    assert report.complete
    expected = by_enumeration(found, tied)
    assert [p.cost for p in report.points] == pytest.approx([size for size, _ in expected])
    assert [p.loss for p in report.points] == pytest.approx([loss for _, loss in expected])
    assert {p.uniform for p in report.uniform} == set(NAMES)
    if tied:
        assert all(p.candidates[0] == p.candidates[2] for p in report.points)


def test_the_plan_is_marked_where_it_is() -> None:
    found = plan()
    point = chosen_point(table_frontier(found, "size_mb"), found)
    assert point is not None and found.loss is not None
    assert point.candidates == tuple(CHOICE.values())
    assert point.cost == pytest.approx(found.predicted.size_bytes / 1e6)
    assert point.loss == pytest.approx(found.loss)
    assert chosen_point(replace(table_frontier(found, "size_mb"), metric="kl"), found) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"table": []}, "assigned by hand"),
        ({"loss": 1e6}, "pairs of sites"),
        ({"table": [{**row, "loss": None} for row in plan().table]}, "not known"),
        ({"table": [{**row, "group": 0} for row in plan().table]}, None),
    ],
)
def test_what_cannot_be_drawn_is_told(fields: dict[str, Any], reason: str | None) -> None:
    found = drawable(replace(plan(), **fields), "size_mb")
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_latency_adds_only_where_equations_give_it() -> None:
    found = plan()
    assert "no sum" in str(drawable(found, "latency_ms"))
    total = sum(row["latency_us"] for row in found.table if row["chosen"]) / 1e3
    described = replace(
        found.predicted, latency_ms=total, latency_ms_lower95=None, latency_ms_upper95=None
    )
    assert drawable(replace(found, predicted=described), "latency_ms") is None


def test_large_networks_list_some_points() -> None:
    report = table_frontier(large(300).plan, "size_mb")
    assert 2 <= len(report.points) <= LISTED


def test_a_frontier_survives_json() -> None:
    report = table_frontier(plan(), "size_mb")
    text = json.dumps({**report.to_json(), "pictures": []})
    assert FrontierReport.from_json(json.loads(text)) == replace(report, notes=list(report.notes))
    for broken in ({}, {"version": 99}, {**json.loads(text), "points": [1]}, []):
        with pytest.raises(mpq.PlanError, match="not a frontier"):
            FrontierReport.from_json(broken)

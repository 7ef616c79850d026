"""The frontier of a network."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tradeoff_net import ANALYTIC, NAMES, X, all_assignments, frontier, model, session

import mpq_compile as mpq
from mpq_compile.calibrate import hold_out, read_batches
from mpq_compile.judging import Judge
from mpq_compile.measuring import NetworkTimes
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session
from mpq_compile.solve import frontier as solved_frontier
from mpq_compile.tradeoff import frontier_of, spread_points


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep evaluations in a folder of the test's own."""
    monkeypatch.setenv("MPQ_EVALUATIONS", str(tmp_path / "evaluations"))
    return tmp_path / "evaluations"


@pytest.mark.parametrize("axis", ["size_mb", "latency_ms", "bops", "energy_mj", "avg_bits"])
def test_every_breakpoint_of_the_network(axis: str) -> None:
    found = frontier_of(session(), axis, points=0)
    allocation = session().allocation()
    weights = sum(site.weight_count for site in session().network.sites)
    column, factor = {
        "size_mb": ("size_bytes", 1e6),
        "latency_ms": ("latency_us", 1e3),
        "bops": ("bops", 1.0),
        "energy_mj": ("energy_mj", 1.0),
        "avg_bits": ("weight_bits", weights),
    }[axis]
    rows = sorted(
        (allocation.usage(a)[column] / factor, allocation.loss(a)) for a in all_assignments()
    )
    expected: list[tuple[float, float]] = []
    for cost, loss in rows:
        if not expected or loss < expected[-1][1] - 1e-15:
            if expected and cost <= expected[-1][0] * (1 + 1e-9):
                expected.pop()
            expected.append((cost, loss))
    assert [p.cost for p in found.points] == pytest.approx([c for c, _ in expected])
    assert [p.loss for p in found.points] == pytest.approx([v for _, v in expected])
    assert found.complete and found.breakpoints == len(expected)
    for point in found.points:
        assert allocation.usage(found.assignment(point))[column] / factor == pytest.approx(
            point.cost
        )


def test_a_plan_with_that_budget_is_the_same_point() -> None:
    found = frontier(points=0)
    point = found.points[len(found.points) // 2]
    kept_part = [part[torch.arange(32) % 4 != 3] for part in X.split(32)]
    budget = mpq.Budget(size_mb=point.cost)
    plan = mpq.plan(model(), X[:1], kept_part, target=ANALYTIC, candidates=NAMES, budget=budget)
    assert plan.loss == pytest.approx(point.loss)
    assert plan.predicted.size_bytes == pytest.approx(point.cost * 1e6)


def test_points_are_evaluated_by_the_users_function() -> None:
    exact = model()(X).argmax(1)

    def evaluate(network: Any) -> float:
        return 100 * float((network(X).argmax(1) == exact).double().mean())

    found = frontier(evaluate=evaluate, points=5)
    assert len(found.evaluated) == 5 and found.float_score == 100.0
    assert found.evaluated[0] == found.points[0] and found.evaluated[-1] == found.points[-1]
    for point in (*found.evaluated, *found.uniform):
        reference = session().reference(found.assignment(point))
        assert point.score == pytest.approx(evaluate(reference))
        assert point.drop == pytest.approx(100 - point.score)
        assert set(point.costs) >= {"size_mb", "bops", "avg_bits"}
    assert [p.uniform for p in found.uniform] == NAMES[::-1]


@pytest.mark.parametrize("name", [None, "kl", "noise", "top1"])
def test_without_labels_held_out_samples_decide(name: str | None) -> None:
    found = frontier(evaluate=name, points=4)
    assert found.measure == (name or "kl")
    drops = [p.drop for p in found.evaluated]
    assert drops[0] >= drops[-1] >= 0
    if name != "top1":  # eight samples of random weights: no class changes
        assert drops[0] > drops[-1]
        assert found.concordance is not None and found.concordance > 0
    assert all(p.score is None for p in found.points)


def test_accuracy_needs_labels() -> None:
    with pytest.raises(mpq.PlanError, match="needs labels"):
        frontier(evaluate="accuracy")
    labels = model()(X).argmax(1)
    with pytest.raises(mpq.CalibrationError, match="labels do not match"):
        frontier(evaluate="accuracy", points=3, calibration=[(X, labels + 100)])
    found = frontier(evaluate="accuracy", points=3, calibration=[(X, labels)])
    assert found.float_score == 100.0
    assert found.evaluated[-1].score == pytest.approx(100.0 - found.evaluated[-1].drop)


def test_a_wrong_metric_is_marked() -> None:
    """Something that calls the network better the fewer bits it has inverts every pair."""

    def evaluate(network: Any) -> float:
        return float((network(X) - model()(X)).square().sum())

    found = frontier(evaluate=evaluate, points=4)
    assert found.inversions == tuple(
        itertools.pairwise(i for i, p in enumerate(found.points) if p.drop is not None)
    )
    assert [p.inverted for p in found.evaluated] == [False, True, True, True]
    assert found.concordance is not None and found.concordance < 0
    assert "worse than a cheaper one" in " ".join(found.notes)


def test_other_budgets_hold_everywhere() -> None:
    free = frontier(points=0)
    bound = 0.7 * session().allocation().usage(dict.fromkeys(free.sites, "w8a8"))["bops"]
    found = frontier(points=3, budget=mpq.Budget(bops=bound))
    assert found.budget == {"bops": bound} and found.method == "solves"
    assert all(p.costs["bops"] <= bound * (1 + 1e-9) for p in found.evaluated)
    assert found.points[-1].loss > free.points[-1].loss


def test_evaluations_are_kept_and_used_again(kept: Path) -> None:
    def evaluate(network: Any) -> float:
        return -float((network(X) - exact).square().mean())

    exact = model()(X).detach()
    first = frontier(evaluate=evaluate, points=4)
    files = sorted(kept.glob("*.json"))
    assert len(files) == len({p.candidates for p in (*first.evaluated, *first.uniform)})
    stamps = [file.stat().st_mtime_ns for file in files]
    again = frontier(evaluate=evaluate, points=4)
    assert again == first
    assert [file.stat().st_mtime_ns for file in files] == stamps
    # Another function, and other data, are other content.
    judge = Judge(session(), "kl", session().batches)
    judge.of(first.assignment(first.points[0]))
    assert judge.fresh == 1
    judge = Judge(session(), "kl", session().batches)
    judge.of(first.assignment(first.points[0]))
    assert judge.fresh == 0
    judge = Judge(session(), "kl", session(0.5).held_out)
    judge.of(first.assignment(first.points[0]))
    assert judge.fresh == 1


def test_what_cannot_be_hashed_is_evaluated_again(kept: Path) -> None:
    seen = iter(range(1000))

    def evaluate(network: Any) -> float:
        next(seen)
        return 0.0

    assignment = dict.fromkeys((site.id for site in session().network.sites), "w8a8")
    for _ in range(2):
        judge = Judge(session(), evaluate, ())
        judge.of(assignment)
        judge.of(assignment)
        assert judge.fresh == 1
    assert not kept.exists()


@pytest.mark.parametrize(
    ("options", "message", "remedy"),
    [
        ({"axis": "size"}, "unknown axis", "size_mb"),
        ({"evaluate": "kll"}, "unknown measure", "'kl'"),
        ({"points": -1}, "negative", ""),
        ({"measure": True}, "no network runs", "leave out"),
        ({"budget": mpq.Budget(max_drop=1.0)}, "every loss", "plan"),
        ({"evaluate": lambda net: float("nan")}, "finite", "repair"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str, remedy: str) -> None:
    with pytest.raises(mpq.PlanError, match=message) as caught:
        frontier(**options)
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": 3}, "unknown axis 3"),
        ({"axis": []}, "needs an axis"),
        ({"points": 2.5}, "whole number"),
        ({"tolerance": -1.0}, "tolerance is negative"),
    ],
)
def test_arguments_of_other_types(options: dict[str, Any], message: str) -> None:
    with pytest.raises(mpq.PlanError, match=message) as caught:
        frontier(**options)
    assert caught.value.remedy


def test_nothing_within_the_other_budgets() -> None:
    with pytest.raises(mpq.InfeasibleBudgetError, match="BOPs"):
        frontier(budget={"bops": 10})


def test_budgets_that_exclude_each_other_say_what_would_do_beside_the_others() -> None:
    """w4a3 has the fewest bit operations, w2a8 the fewest bits."""
    names = ["w2a8", "w4a3"]
    macs = sum(site.macs for site in session().network.sites)
    with pytest.raises(mpq.InfeasibleBudgetError, match="not all of them together") as caught:
        frontier(budget={"bops": 12 * macs, "avg_bits": 2.0}, candidates=names)
    told = str(caught.value.expected)
    assert "beside the other budgets at least" in told and "average weight 4 bits" in told
    assert f"BOPs {16 * macs:.4g}" in told


def test_points_are_spread_with_both_ends() -> None:
    allocation = session().allocation()
    curve = solved_frontier(allocation.tradeoff_problem("size_bytes", {}), "size_bytes")
    for count in (2, 3, 6, 1000):
        places = spread_points(curve, count)
        assert places[0] == 0 and places[-1] == len(curve) - 1
        assert len(places) <= count
    assert spread_points(curve, 0) == []


def test_held_out_samples_are_others() -> None:
    network = session().network
    batches = read_batches([X[:50]], network)
    kept_part, held = hold_out(batches, 0.25, network)
    assert sum(len(b.inputs[0]) for b in kept_part) == 38
    assert sum(len(b.inputs[0]) for b in held) == 12
    together = torch.cat([b.inputs[0] for b in (*kept_part, *held)])
    assert sorted(together.sum((1, 2, 3)).tolist()) == sorted(X[:50].sum((1, 2, 3)).tolist())
    few = read_batches([X[:2]], network)
    assert hold_out(few, 0.25, network) == (few, few)


def test_points_are_measured_on_this_machine(kept: Path) -> None:
    """What a process measured before is what the frontier then shows: it goes on from disk."""
    local = Session(model(), X[:1], [X], candidates=["w8a8"], recipe=Recipe(held_out=0.25))
    assignment = dict.fromkeys((site.id for site in local.network.sites), "w8a8")
    seen = NetworkTimes(local, processes=1).of(assignment)
    assert 0 < seen.latency_ms_lower95 <= seen.latency_ms <= seen.latency_ms_upper95
    found = frontier_of(local, "size_mb", points=1, measure=True)
    assert [p.measured for p in (*found.points, *found.uniform)] == [seen, seen]


def test_several_axes_give_points_that_no_assignment_beats() -> None:
    found = frontier_of(session(), ["size_mb", "energy_mj"], points=4, evaluate="noise")
    allocation = session().allocation()
    rows = []
    for assignment in all_assignments():
        usage = allocation.usage(assignment)
        rows.append((usage["size_bytes"] / 1e6, usage["energy_mj"], allocation.loss(assignment)))
    assert list(found.axes) == ["size_mb", "energy_mj"] and found.method == "grid"
    assert len(found.points) > 4 and len(found.evaluated) == 4
    for point in found.points:
        own = (point.cost, point.costs["energy_mj"], point.loss)
        assert point.costs["size_mb"] == pytest.approx(point.cost)
        beaten_by = [
            row
            for row in rows
            if all(a <= b * (1 + 1e-9) for a, b in zip(row, own, strict=True))
            and any(a < b * (1 - 1e-9) for a, b in zip(row, own, strict=True))
        ]
        assert not beaten_by
    for a, b in found.inversions:
        first, second = found.points[a], found.points[b]
        assert first.drop < second.drop and first.cost <= second.cost
        assert first.costs["energy_mj"] <= second.costs["energy_mj"]


def test_axes_are_named() -> None:
    with pytest.raises(mpq.MpqError, match="size_mb"):
        frontier_of(session(), ["size_mb", "latency"], points=0)
    with pytest.raises(mpq.MpqError, match="needs an axis"):
        frontier_of(session(), [], points=0)

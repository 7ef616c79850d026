"""The whole trade-off against enumeration: every breakpoint, nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solve_instances import assignments, chain, network, small_problem

from mpq_compile.errors import PlanError
from mpq_compile.solve import Frontier, Problem, evaluate, fits, frontier, solve
from mpq_compile.solve.problem import limit_of


def breakpoints(problem: Problem, axis: str) -> list[tuple[float, float]]:
    """Return the non-dominated (cost, loss) pairs of all assignments within the budget."""
    points = sorted(
        (usage[axis], loss)
        for _, loss, usage in assignments(problem)
        if loss < math.inf and fits(usage, problem.budget)
    )
    kept: list[tuple[float, float]] = []
    for cost, loss in points:
        if kept and loss >= kept[-1][1] - 1e-9:
            continue
        if kept and cost <= limit_of(kept[-1][0]):
            kept.pop()
        kept.append((cost, loss))
    return kept


def check_points(problem: Problem, found: Frontier) -> None:
    """Hold every point against the problem itself."""
    for i in range(len(found)):
        loss, usage = evaluate(problem, found.assignment(i))
        assert loss == pytest.approx(found.loss[i], abs=1e-12)
        assert [usage[a] for a in found.axes] == pytest.approx(found.usage[i].tolist(), abs=1e-12)
        assert fits(usage, problem.budget)


def check_against_brute_force(problem: Problem, found: Frontier, axis: str) -> None:
    expected = breakpoints(problem, axis)
    assert found.complete
    assert found.cost.tolist() == pytest.approx([c for c, _ in expected], abs=1e-9)
    assert found.loss.tolist() == pytest.approx([v for _, v in expected], abs=1e-9)
    check_points(problem, found)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_all_breakpoints_of_any_problem(seed: int) -> None:
    """With and without pairs, other budgets, forbidden combinations, ties and negative values."""
    problem = small_problem(seed)
    if problem.budget:
        axis = next(iter(problem.budget))
        check_against_brute_force(problem, frontier(problem, axis, solves=10_000), axis)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("max_states", [200_000, 0])
def test_one_budget_by_states_and_by_solves(seed: int, max_states: int) -> None:
    """Both ways give the same, and so does the budget's range being left open."""
    problem = network(seed, groups=5, candidates=4)
    for given_problem in (problem, replace(problem, budget={})):
        found = frontier(given_problem, "k0", solves=10_000, max_states=max_states)
        assert found.method == ("states" if max_states else "solves")
        check_against_brute_force(given_problem, found, "k0")


@pytest.mark.parametrize("seed", range(4))
def test_pair_costs(seed: int) -> None:
    problem = replace(network(seed, groups=5, candidates=4, edges=chain(5)), budget={})
    found = frontier(problem, "k0", solves=10_000)
    assert found.method == "solves"
    check_against_brute_force(problem, found, "k0")


@pytest.mark.parametrize("edges", [None, chain(30)])
def test_few_solves_are_spread_and_proven(edges: list[tuple[int, int]] | None) -> None:
    problem = replace(network(1, groups=30, edges=edges), budget={})
    found = frontier(problem, "k0", solves=24, max_states=0)
    assert not found.complete
    check_points(problem, found)
    assert (found.gap == 0).all()
    assert (np.diff(found.cost) > 0).all() and (np.diff(found.loss) < 0).all()
    ends = [solve(problem).usage["k0"], found.cost[0]]
    assert found.cost[-1] <= ends[0] * (1 + 1e-9)
    assert np.diff(found.cost).max() < 0.3 * np.ptp(found.cost)
    for i in range(0, len(found), 7):
        budgeted = replace(problem, budget={"k0": float(found.cost[i])})
        assert solve(budgeted).loss == pytest.approx(found.loss[i], rel=1e-9)


def test_from_a_known_point_on() -> None:
    """What lies between two known points and nothing else; merged it completes the rest."""
    problem = replace(network(3, groups=5, candidates=4), budget={})
    whole = frontier(problem, "k0")
    low, high = 4, 12
    narrow = replace(problem, budget={"k0": float(whole.cost[high])})
    found = frontier(narrow, "k0", start=whole.assignment(low), solves=1000)
    assert found.complete
    assert found.loss.tolist() == pytest.approx(whole.loss[low : high + 1].tolist())
    coarse = whole.take(np.array([0, low, high, len(whole) - 1]))
    merged = coarse.merged(found)
    expected = [0, *range(low, high + 1), len(whole) - 1]
    assert merged.cost.tolist() == pytest.approx(whole.cost[expected].tolist())


def test_the_other_reading() -> None:
    problem = replace(network(4, groups=5, candidates=4), budget={})
    found = frontier(problem, "k0")
    points = breakpoints(problem, "k0")
    for bound in np.linspace(points[-1][1], points[0][1], 25):
        cheapest = min(cost for cost, loss in points if loss <= limit_of(bound))
        assert found.cost[found.within_loss(bound)] == pytest.approx(cheapest)
    for budget in np.linspace(points[0][0], points[-1][0], 25):
        least = min(loss for cost, loss in points if cost <= limit_of(budget))
        assert found.loss[found.within_budget(budget)] == pytest.approx(least)
    assert found.within_loss(points[-1][1] - 1.0) is None
    assert found.within_budget(points[0][0] - 1.0) is None


@pytest.mark.parametrize("edges", [None, chain(4)])
def test_a_grid_of_two_budgets(edges: list[tuple[int, int]] | None) -> None:
    problem = replace(network(2, groups=4, candidates=4, axes=2, edges=edges), budget={})
    found = frontier(problem, ["k0", "k1"], solves=100)
    assert found.method == "grid" and not found.complete and found.usage.shape[1] == 2
    check_points(problem, found)
    everything = [(usage, loss) for _, loss, usage in assignments(problem)]
    for i in range(len(found)):
        budget = dict(zip(found.axes, found.usage[i].tolist(), strict=True))
        least = min(loss for usage, loss in everything if fits(usage, budget))
        assert found.loss[i] == pytest.approx(least)
    assert len(found) > 5


def test_what_is_infeasible_has_no_points() -> None:
    problem = network(0, groups=3)
    nothing = replace(problem, budget={"k0": 1e-3})
    assert len(frontier(nothing, "k0")) == 0
    assert len(frontier(nothing, "k0", max_states=0)) == 0


def test_an_unknown_axis_names_the_nearest() -> None:
    with pytest.raises(PlanError, match="'k1'") as caught:
        frontier(network(0, groups=2), "k1")
    assert "'k0'" in str(caught.value.remedy)
    with pytest.raises(PlanError, match="needs an axis"):
        frontier(network(0, groups=2), [])

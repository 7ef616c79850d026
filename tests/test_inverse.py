"""The inverse problem: the cheapest network within a bound on the loss or on the drop."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from tradeoff_net import ANALYTIC, NAMES, X, all_assignments, model, session

import mpq_compile as mpq
from mpq_compile.inverse import Goal, _standing, cheapest
from mpq_compile.judging import Judge, Judgement
from mpq_compile.session import Session
from mpq_compile.solve import evaluate as worth
from mpq_compile.solve import frontier as solved_frontier
from mpq_compile.solve import solve
from mpq_compile.tradeoff import frontier_of


class TableJudge(Judge):
    """A judge whose drops are known beforehand."""

    def __init__(self, drop_of: Any) -> None:
        super().__init__(session(), lambda network: 0.0, ())
        self.asked: list[dict[str, str]] = []
        self._drop_of = drop_of

    def of(self, assignment: Any) -> Judgement:
        self.asked.append(dict(assignment))
        return Judgement(drop=self._drop_of(assignment))


def size(assignment: dict[str, str]) -> float:
    return session().allocation().usage(assignment)["size_bytes"]


def frontier_assignments() -> list[dict[str, str]]:
    found = frontier_of(session(), "size_mb", points=0)
    return [found.assignment(point) for point in found.points]


def test_the_smallest_within_a_right_proxy() -> None:
    """The drop is the metric's loss: the answer is the exact inverse."""
    allocation = session().allocation()
    points = frontier_assignments()
    limit = allocation.loss(points[len(points) // 3])
    judge = TableJudge(allocation.loss)
    budget = mpq.Budget(max_drop=limit * (1 + 1e-9))
    found = cheapest(session(), budget, Goal(objective="size", judge=judge))
    best = min(size(a) for a in all_assignments() if allocation.loss(a) <= limit * (1 + 1e-9))
    assert size(found.assignment) == best
    assert found.assignment in judge.asked and len(judge.asked) <= 16
    verified = found.solution.certificate["drop"]
    assert verified["value"] <= verified["limit"] and verified["inversions"] == 0


def test_the_smallest_within_an_inverted_proxy() -> None:
    """The drop rises with the bits: the cheapest point is the answer, which bisection misses."""
    points = frontier_assignments()
    judge = TableJudge(lambda a: size(a))
    limit = size(points[2])
    found = cheapest(
        session(),
        mpq.Budget(max_drop=limit),
        Goal(objective="size", judge=judge, evaluations=len(points)),
    )
    assert found.assignment == points[0]
    assert "order was wrong" in " ".join(found.notes)


@pytest.mark.parametrize("seed", range(5))
def test_any_proxy_with_enough_evaluations(seed: int) -> None:
    points = frontier_assignments()
    drops = torch.rand(len(points), generator=torch.Generator().manual_seed(seed)).tolist()
    judge = TableJudge(lambda a: drops[points.index(dict(a))])
    found = cheapest(
        session(),
        mpq.Budget(max_drop=0.3),
        Goal(objective="size", judge=judge, evaluations=len(points)),
    )
    assert found.assignment == points[next(i for i, drop in enumerate(drops) if drop <= 0.3)]
    assert found.solution.certificate["drop"]["exhaustive"]


def test_gaps_around_the_answer_are_closed() -> None:
    """With another budget the frontier has gaps; the answer hardly has."""
    layers = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(7)]
    torch.manual_seed(3)
    deep = Session(
        nn.Sequential(*layers).eval(),
        torch.randn(1, 4, 6, 6),
        [torch.randn(16, 4, 6, 6)],
        ANALYTIC,
        candidates=[f"w{bits}a8" for bits in (8, 6, 5, 4, 3, 2)],
    )
    allocation = deep.allocation()
    bound = allocation.usage(dict.fromkeys(allocation.choices, "w6a8"))["bops"]
    curve = solved_frontier(allocation.tradeoff_problem("energy_mj", {"bops": bound}), "energy_mj")
    assert not curve.complete
    limit = float(curve.loss[20] * 0.6 + curve.loss[21] * 0.4)
    judge = TableJudge(allocation.loss)
    found = cheapest(
        deep,
        mpq.Budget(max_drop=limit, bops=bound),
        Goal(objective="energy", judge=judge, evaluations=16),
    )
    exact = solve(allocation.inverse_problem("energy", limit, {"bops": bound}, None)).loss
    coarse = curve.cost[curve.within_loss(limit)]
    energy = allocation.usage(found.assignment)["energy_mj"]
    assert len(judge.asked) <= 16
    assert energy <= coarse and energy <= exact * 1.002


def test_evaluations_are_bounded_and_the_least_drop_is_named() -> None:
    judge = TableJudge(lambda a: 5.0)
    with pytest.raises(mpq.InfeasibleBudgetError, match="drop cannot be kept") as caught:
        cheapest(
            session(),
            mpq.Budget(max_drop=1.0),
            Goal(objective="size", judge=judge, evaluations=4),
        )
    assert len(judge.asked) == 4 and "5 at the least" in str(caught.value.found)


@pytest.mark.parametrize("objective", ["size", "latency", "bops", "energy"])
def test_a_bound_on_the_loss_is_solved_exactly(objective: str) -> None:
    allocation = session().allocation()
    axis = {"size": "size_bytes", "latency": "latency_us", "bops": "bops", "energy": "energy_mj"}
    limit = allocation.loss(dict.fromkeys((s.id for s in session().network.sites), "w4a8"))
    plan = mpq.plan(
        model(),
        X[:1],
        [X],
        target=ANALYTIC,
        candidates=NAMES,
        minimize=objective,
        budget=mpq.Budget(max_loss=limit),
    )
    best = min(
        allocation.usage(a)[axis[objective]]
        for a in all_assignments()
        if allocation.loss(a) <= limit * (1 + 1e-9)
    )
    assert allocation.usage(plan.assignment)[axis[objective]] == pytest.approx(best)
    assert plan.loss <= limit * (1 + 1e-9) and plan.certificate["status"] == "optimal"


def test_a_loss_that_cannot_be_kept() -> None:
    with pytest.raises(mpq.InfeasibleBudgetError, match="loss cannot be kept") as caught:
        mpq.plan(model(), X[:1], [X], target=ANALYTIC, candidates=NAMES, budget={"max_loss": 1e-12})
    assert "most accurate" in str(caught.value.found)


def test_a_drop_within_a_loss_that_cannot_be_kept() -> None:
    """The loss is what nothing keeps, so the message does not speak of costs."""
    budget = mpq.Budget(max_drop=1e9, max_loss=1e-12)
    with pytest.raises(mpq.InfeasibleBudgetError, match="loss cannot be kept"):
        cheapest(session(), budget, Goal(objective="size", judge=TableJudge(lambda a: 0.0)))


def test_both_bounds_at_once() -> None:
    """The loss bounds the frontier, on which the drop is searched."""
    allocation = session().allocation()
    points = frontier_assignments()
    middle = points[len(points) // 2]
    found = cheapest(
        session(),
        mpq.Budget(max_drop=1e9, max_loss=allocation.loss(middle)),
        Goal(objective="size", judge=TableJudge(lambda a: 0.0)),
    )
    assert found.assignment == middle


def test_the_drop_of_a_named_measure() -> None:
    plan = mpq.plan(
        model(),
        X[:1],
        [X],
        target=ANALYTIC,
        candidates=NAMES,
        minimize="bops",
        evaluate="noise",
        budget=mpq.Budget(max_drop=0.01),
    )
    judge = Judge(session(0.25), "noise", session(0.25).held_out)
    assert judge.of(plan.assignment).drop <= 0.01
    assert plan.certificate["drop"]["value"] == pytest.approx(judge.of(plan.assignment).drop)


def test_pairs_and_the_problem_agree() -> None:
    """The trade-off's problem counts what the allocation counts."""
    allocation = session().allocation()
    problem = allocation.tradeoff_problem("latency_us", {})
    assignment = all_assignments()[17]
    loss, usage = worth(problem, {g.name: assignment[g.name] for g in problem.groups})
    assert loss == pytest.approx(allocation.loss(assignment))
    overhead = allocation.costs.overhead.get("latency_us", 0.0)
    assert usage["latency_us"] + overhead == pytest.approx(
        allocation.usage(assignment)["latency_us"]
    )


def plan_to(**options: Any) -> mpq.Plan:
    budget = options.pop("budget", mpq.Budget(max_drop=1.0))
    return mpq.plan(
        model(), X[:1], [X], target=ANALYTIC, candidates=NAMES, budget=budget, **options
    )


@pytest.mark.parametrize("answer", [None, "good", torch.zeros(2), float("nan")])
def test_what_evaluate_returns_must_be_a_number(answer: Any) -> None:
    with pytest.raises(mpq.PlanError, match="did not return a finite number"):
        plan_to(evaluate=lambda network: answer, minimize="size")


def test_what_measures_nothing_is_refused() -> None:
    with pytest.raises(mpq.PlanError, match="unknown measure 3"):
        plan_to(evaluate=3, minimize="size")
    # An evaluate that would never be called promises what nobody keeps.
    with pytest.raises(mpq.PlanError, match="nothing bounds") as caught:
        plan_to(evaluate="top1", budget=mpq.Budget(avg_bits=5))
    assert "max_drop" in str(caught.value.expected)


def test_another_assignment_than_the_optimum_is_not_called_optimal() -> None:
    """Where a frontier has gaps, what was measured may cost a little more than what is proven."""
    allocation = session().allocation()
    everything = {group.name: "w8a8" for group in allocation.problem({}).groups}
    problem = allocation.inverse_problem("size", 10.0, {}, None)
    optimum = solve(problem)
    standing = _standing(optimum, problem, everything)
    assert standing.status == "feasible" and standing.bound == optimum.loss
    assert standing.gap == pytest.approx(1 - optimum.loss / standing.loss)
    assert mpq.check(problem, standing).ok
    assert _standing(optimum, problem, optimum.assignment).status == "optimal"


@pytest.mark.parametrize("name", ["latency_p95_ms", "peak_activation_mb", "size_mb", "energy_mj"])
def test_the_least_budget_that_is_named_would_do(name: str) -> None:
    """Read from the message, to its four digits, and tried."""
    with pytest.raises(mpq.InfeasibleBudgetError) as caught:
        plan_to(budget=mpq.Budget(**{name: 1e-9}))
    told = re.search(r"(?:p95_ms|at least|size|energy) (\d[\d.e-]*)", str(caught.value.expected))
    assert told is not None, caught.value.expected
    least = float(told[1])
    assert plan_to(budget=mpq.Budget(**{name: least * 1.001})).assignment
    with pytest.raises(mpq.InfeasibleBudgetError):
        plan_to(budget=mpq.Budget(**{name: least * 0.999}))


@pytest.mark.parametrize("number", [np.float32(5), np.int64(5), np.float64(5)])
def test_budgets_may_be_numbers_of_numpy(number: Any) -> None:
    made = plan_to(budget={"avg_bits": number})
    assert made == mpq.Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert made.budget == {"avg_bits": 5.0}

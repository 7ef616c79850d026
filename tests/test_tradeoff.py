"""The frontier of a network, and the inverse problem along it."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.calibrate import hold_out, read_batches
from mpq_compile.inverse import Goal, cheapest
from mpq_compile.judging import Judge, Judgement
from mpq_compile.measuring import NetworkTimes
from mpq_compile.session import Session
from mpq_compile.solve import evaluate as worth
from mpq_compile.solve import frontier as solved_frontier
from mpq_compile.solve import solve
from mpq_compile.tradeoff import frontier_of, spread_points

ANALYTIC = "bit_serial"
NAMES = ["w8a8", "w6a8", "w4a8", "w2a8"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


X = torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@cache
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@cache
def session(held_out: float = 0.0) -> Session:
    return Session(model(), X[:1], [X], ANALYTIC, candidates=NAMES, held_out_share=held_out)


def frontier(**options: Any) -> mpq.FrontierReport:
    options = {"target": ANALYTIC, "candidates": NAMES, "axis": "size_mb", **options}
    return mpq.frontier(model(), X[:1], options.pop("calibration", [X]), **options)


def all_assignments() -> list[dict[str, str]]:
    sites = [site.id for site in session().network.sites]
    return [
        dict(zip(sites, names, strict=True))
        for names in itertools.product(NAMES, repeat=len(sites))
    ]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep evaluations in a folder of the test's own."""
    monkeypatch.setenv("MPQ_EVALUATIONS", str(tmp_path / "evaluations"))
    return tmp_path / "evaluations"


# The frontier


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


def test_nothing_within_the_other_budgets() -> None:
    with pytest.raises(mpq.InfeasibleBudgetError, match="BOPs"):
        frontier(budget=mpq.Budget(bops=10))


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
    local = Session(model(), X[:1], [X], candidates=["w8a8"], held_out_share=0.25)
    assignment = dict.fromkeys((site.id for site in local.network.sites), "w8a8")
    seen = NetworkTimes(local, processes=1).of(assignment)
    assert 0 < seen.latency_ms_lower95 <= seen.latency_ms <= seen.latency_ms_upper95
    found = frontier_of(local, "size_mb", points=1, measure=True)
    assert [p.measured for p in (*found.points, *found.uniform)] == [seen, seen]


# The inverse


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
    judge = Judge(session(), "noise", session().batches)
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

"""The exact solver against brute force and against HiGHS."""

from __future__ import annotations

import time

import numpy as np
import pytest
from solve_instances import brute_force, chain, complete, network, residual, small_problem, star

from mpq_compile.errors import MpqError
from mpq_compile.solve import CandidateTerm, Group, Problem, elimination, optimise, solve
from mpq_compile.solve.certificate import check

SHAPES = {
    "none": lambda n: [],
    "chain": chain,
    "residual": residual,
    "star": star,
    "complete": complete,
}


@pytest.mark.parametrize("block", range(10))
def test_equals_brute_force(block: int) -> None:
    for seed in range(40 * block, 40 * block + 40):
        _compare_with_brute_force(seed)


@pytest.mark.parametrize("block", range(5))
def test_equals_brute_force_when_beams_and_tables_are_tiny(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The depth-first part and the mini-buckets serve only large problems otherwise."""
    monkeypatch.setattr(optimise, "BEAMS", (2, 3))
    monkeypatch.setattr(optimise, "CHUNK", 2)
    monkeypatch.setattr(elimination, "TABLE_LIMIT", 5)
    for seed in range(1000 + 30 * block, 1030 + 30 * block):
        _compare_with_brute_force(seed)


def _compare_with_brute_force(seed: int) -> None:
    problem = small_problem(seed)
    best, solution = brute_force(problem), solve(problem, "exact")
    if best is None:
        assert solution.status == "infeasible"
        return
    assert solution.status == "optimal"
    assert solution.loss == pytest.approx(best[1], rel=1e-9, abs=1e-9)
    # Of equal assignments the first by candidate order.
    assert solution.assignment == best[0]
    assert solution.bound == solution.loss
    assert solution.gap == 0.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_equals_highs(shape: str, axes: int, seed: int) -> None:
    groups = 8 if shape == "complete" else 14
    problem = network(seed, groups=groups, axes=axes, edges=SHAPES[shape](groups))
    own, reference = solve(problem, "exact"), solve(problem, "milp")
    assert own.status == "optimal"
    assert own.bound == own.loss
    assert own.loss == pytest.approx(reference.loss, rel=1e-7)
    assert check(problem, own).ok


def test_two_hundred_groups() -> None:
    problem = network(5, groups=200)
    solution = solve(problem, "exact")
    assert solution.status == "optimal"
    assert solution.loss == pytest.approx(solve(problem, "milp").loss, rel=1e-7)


def test_time_limit_gives_the_best_found_with_its_gap() -> None:
    problem = network(1, groups=200, axes=3, correlated=True)
    solution = solve(problem, "exact", time_limit_s=0.2)
    assert solution.status == "feasible"
    assert solution.gap is not None and 0 < solution.gap < 0.01
    report = check(problem, solution)
    assert report.ok
    assert report.lagrangian_bound is not None and solution.bound is not None
    assert report.lagrangian_bound <= solution.bound * (1 + 1e-9)


def test_no_answer_in_time_is_an_error() -> None:
    """Subset sums without a solution: no bound helps, and nothing fits."""
    rng = np.random.default_rng(0)
    sizes = 2.0 * rng.integers(10**8, 10**9, 60)
    half = float(sizes.sum() // 4 * 2 + 1)
    groups = tuple(
        Group(
            name=f"g{i}",
            candidates=(
                CandidateTerm(name="in", loss=0.0, costs={"up": size, "down": -size}),
                CandidateTerm(name="out", loss=0.0, costs={"up": 0.0, "down": 0.0}),
            ),
        )
        for i, size in enumerate(sizes)
    )
    budget = {"up": half - 1e-3, "down": -half + 1e-3}
    problem = Problem(groups=groups, budget={k: v * (1 - 1e-9) for k, v in budget.items()})
    start = time.perf_counter()
    with pytest.raises(MpqError, match="time_limit_s"):
        solve(problem, "exact", time_limit_s=0.2)
    assert time.perf_counter() > start


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e9])
def test_units_do_not_matter(scale: float) -> None:
    problem = network(7, groups=12, axes=2, edges=chain(12))
    scaled = Problem(
        groups=tuple(
            Group(
                name=g.name,
                candidates=tuple(
                    CandidateTerm(name=c.name, loss=c.loss * scale, costs=c.costs)
                    for c in g.candidates
                ),
            )
            for g in problem.groups
        ),
        budget=problem.budget,
        pairs=problem.pairs,
    )
    assert solve(scaled).assignment == solve(problem).assignment


def test_a_huge_loss_does_not_blur_the_others() -> None:
    candidates = tuple(
        CandidateTerm(name=n, loss=loss, costs={"us": us})
        for n, loss, us in (("w2", 1e15, 0.0), ("w4", 2e-9, 1.0), ("w8", 1e-9, 1.0))
    )
    groups = tuple(Group(name=f"g{i}", candidates=candidates) for i in range(4))
    solution = solve(Problem(groups=groups, budget={"us": 4.0}))
    assert set(solution.assignment.values()) == {"w8"}

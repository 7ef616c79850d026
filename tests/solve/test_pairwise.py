"""Blocks, messages and branch and bound against enumeration, and what the checker makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from solve_instances import assignments, brute_force, complete, network, small_problem

from mpq_compile.solve import Pair, Problem, blocks, order, pairwise, solve
from mpq_compile.solve.block_bound import bound_blocks, without_pairs
from mpq_compile.solve.blocks import build_blocks
from mpq_compile.solve.certificate import check
from mpq_compile.solve.certificate.messages import least_by_messages
from mpq_compile.solve.certificate.terms import read_terms
from mpq_compile.solve.kicks import iterate
from mpq_compile.solve.tables import build_tables


def dense(seed: int, groups: int = 14, candidates: int = 4, axes: int = 1) -> Problem:
    """A network in which every two groups have a cross term."""
    plain = network(seed, groups=groups, candidates=candidates, axes=axes)
    rng = np.random.default_rng(seed)
    pairs = tuple(
        Pair(
            a=f"g{a}",
            b=f"g{b}",
            loss=tuple(map(tuple, rng.normal(0, 0.2, (candidates, candidates)).tolist())),
        )
        for a, b in complete(groups)
    )
    return replace(plain, pairs=pairs)


@pytest.mark.parametrize("labels", [1, 4, 20, 256])
@pytest.mark.parametrize("block", range(4))
def test_equals_brute_force(labels: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the blocks, with pair costs, nulls, several budgets and none."""
    monkeypatch.setattr(blocks, "LABELS", labels)
    for seed in range(20 * block, 20 * block + 20):
        problem = small_problem(seed)
        best, solution = brute_force(problem), solve(problem, "pairwise")
        assert (solution.status == "infeasible") == (best is None)
        assert check(problem, solution).ok
        if best is not None:
            assert solution.status == "optimal"
            assert solution.loss == pytest.approx(best[1], abs=1e-9)


@pytest.mark.parametrize("labels", [4, 20])
@pytest.mark.parametrize("seed", range(30))
def test_messages_bound_from_below(labels: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LABELS", labels)
    problem = small_problem(seed)
    tables = build_tables(problem)
    found = bound_blocks(tables, without_pairs(tables), np.inf, deadline=np.inf)
    price = found.dual.price
    least = min(
        loss + sum(p * usage[a] for p, a in zip(price, tables.axes, strict=True))
        for _, loss, usage in assignments(problem)
    ) - float(price @ tables.limit)
    assert found.dual.bound <= least + 1e-9
    seen, faults = least_by_messages(read_terms(problem), found.certificate, price)
    assert not faults
    # The checker may know more: that what is forbidden is so at any price.
    assert seen is not None and found.dual.bound - 1e-9 <= seen <= least + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("axes", [1, 2])
def test_dense_problems_are_solved(seed: int, axes: int) -> None:
    problem = dense(seed, groups=8, axes=axes)
    own, reference = solve(problem, "pairwise"), solve(problem, "milp")
    assert own.status == "optimal"
    assert own.loss == pytest.approx(reference.loss, abs=1e-6)


def test_exact_hands_dense_problems_over(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = dense(1)
    assert order.open_bits(build_tables(problem)) > order.WIDE
    solution = solve(problem, "exact")
    assert solution.status == "optimal" and solution.solver == "exact"
    assert "blocks" in solution.certificate
    assert solution.loss == pytest.approx(solve(problem, "pairwise").loss)


@pytest.mark.parametrize("solver", ["exact", "greedy", "milp", "pairwise"])
def test_the_bound_of_a_dense_problem_is_verified(solver: str) -> None:
    problem = dense(2)
    solution = solve(problem, solver, time_limit_s=1.0)
    report = check(problem, solution)
    assert report.ok and report.bound is not None and solution.loss is not None
    assert report.bound <= solution.loss + 1e-9
    assert report.proven == ("multipliers" if report.optimal else "search") or (
        solution.bound is not None and solution.bound <= report.bound + 1e-9
    )


def test_altered_messages_are_rejected() -> None:
    problem = dense(3)
    solution = solve(problem, "pairwise")
    certificate = solution.certificate

    def check_with(**parts: object) -> bool:
        return check(problem, replace(solution, certificate={**certificate, **parts})).ok

    assert check_with()
    k, m, to_k, to_m = certificate["messages"][0]
    others = certificate["messages"][1:]
    assert not check_with(messages=[[k, m, [v + 1.0 for v in to_k[:1]] + to_k[1:], to_m], *others])
    assert not check_with(messages=[[k, m, to_k[1:], to_m], *others])
    assert not check_with(blocks=certificate["blocks"][1:])
    assert not check_with(lagrangian_bound=certificate["lagrangian_bound"] + 1.0)
    assert not check_with(multipliers={a: 9.0 * p for a, p in certificate["multipliers"].items()})


def test_large_problems_get_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairwise, "SEARCHED", 2)
    problem = dense(4, groups=30)
    solution = solve(problem, "pairwise", time_limit_s=2.0)
    assert solution.status == "feasible"
    assert solution.gap is not None and solution.gap > 0
    assert check(problem, solution).bound == pytest.approx(solution.bound)


def test_local_search_repairs_what_does_not_fit() -> None:
    problem = network(0, groups=20, axes=2)
    tables = build_tables(problem)
    dearest = np.full(20, 5)
    assert not tables.fits(dearest)
    found = iterate(tables, dearest, deadline=np.inf, end=np.inf)
    assert found is not None and tables.fits(found.choice)
    best = solve(problem).loss
    assert best is not None and found.loss <= 1.02 * best


def test_blocks_hold_all_labels_of_coupled_groups() -> None:
    tables = build_tables(dense(0, groups=6))
    found = build_blocks(tables)
    assert sorted(g for block in found.members for g in block) == list(range(6))
    assert [len(labels) for labels in found.labels] == [256, 16]
    rng = np.random.default_rng(0)
    for _ in range(20):
        picked = {k: int(rng.integers(len(x))) for k, x in enumerate(found.labels)}
        loss = sum(found.loss[k][x] for k, x in picked.items())
        loss += found.pair_loss[0, 1][picked[0], picked[1]]
        assert loss == pytest.approx(tables.worth(found.choice(picked))[0])

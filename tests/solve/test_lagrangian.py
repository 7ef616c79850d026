"""The Lagrangian bound against the linear relaxation and against enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog
from solve_instances import assignments, chain, complete, network, small_problem

from mpq_compile.solve import Problem, elimination
from mpq_compile.solve.elimination import plan_elimination
from mpq_compile.solve.lagrangian import maximise_dual, minimise
from mpq_compile.solve.order import order_paired
from mpq_compile.solve.tables import Tables, build_tables


@pytest.mark.parametrize("axes", [1, 2, 4])
def test_equals_the_linear_relaxation(axes: int) -> None:
    tables = build_tables(network(3, groups=20, axes=axes))
    dual = maximise_dual(tables, plan_elimination(tables, []))
    result = linprog(
        tables.loss.ravel(),
        A_ub=tables.cost.reshape(axes, -1),
        b_ub=tables.limit,
        A_eq=np.kron(np.eye(20), np.ones(6)),
        b_eq=np.ones(20),
    )
    assert dual.bound == pytest.approx(result.fun, rel=1e-8)


@pytest.mark.parametrize("seed", range(40))
def test_minimise_equals_enumeration(seed: int) -> None:
    problem, tables = _with_tables(seed)
    price = np.random.default_rng(seed).uniform(0, 2, len(tables.axes))
    column = minimise(tables, plan_elimination(tables, order_paired(tables)), 1.0, price)
    assert column.value == pytest.approx(_least(problem, tables, price))


@pytest.mark.parametrize("seed", range(40))
def test_mini_buckets_bound_from_below(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "TABLE_LIMIT", 4)
    problem, tables = _with_tables(seed)
    price = np.random.default_rng(seed).uniform(0, 2, len(tables.axes))
    column = minimise(tables, plan_elimination(tables, order_paired(tables)), 1.0, price)
    assert column.value <= _least(problem, tables, price) + 1e-9


def _with_tables(seed: int) -> tuple[Problem, Tables]:
    problem = small_problem(seed)
    return problem, build_tables(problem)


def _least(problem: Problem, tables: Tables, price: np.ndarray) -> float:
    return min(
        loss + sum(p * usage[a] for p, a in zip(price, tables.axes, strict=True))
        for _, loss, usage in assignments(problem)
    ) - float(price @ tables.limit)


def test_order_keeps_few_groups_open() -> None:
    backward_star = [(g, 11) for g in range(11)]
    tables = build_tables(network(0, groups=12, edges=backward_star))
    assert order_paired(tables).index(11) <= 1
    tables = build_tables(network(0, groups=12, edges=chain(12)))
    assert order_paired(tables) == list(range(12))
    tables = build_tables(network(0, groups=12, edges=complete(12)))
    assert sorted(order_paired(tables)) == list(range(12))

"""One battery that every registered solver passes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solve_instances import brute_force, chain, complete, network, residual, small_problem

from mpq_compile.errors import MpqError, PlanError
from mpq_compile.registry import SOLVERS
from mpq_compile.solve import CandidateTerm, Group, Problem, evaluate, fits, solve, solve_json
from mpq_compile.solve.certificate import check

solvers = pytest.mark.parametrize("solver", list(SOLVERS))

NETWORKS = {
    "one budget": network(0, groups=30),
    "three budgets": network(1, groups=15, axes=3),
    "chain": network(2, groups=20, edges=chain(20)),
    "residual, two budgets": network(3, groups=12, axes=2, edges=residual(12)),
}


@solvers
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_answer_is_sound(solver: str, seed: int) -> None:
    problem = small_problem(seed)
    best = brute_force(problem)
    solution = solve(problem, solver)
    assert (solution.status == "infeasible") == (best is None)
    assert check(problem, solution).faults == ()
    if best is None or solution.loss is None or solution.bound is None:
        return
    assert evaluate(problem, solution.assignment) == (solution.loss, solution.usage)
    assert fits(solution.usage, problem.budget)
    tolerance = 1e-9 * max(1.0, abs(best[1]))
    assert solution.bound <= best[1] + tolerance
    assert solution.loss >= best[1] - tolerance


@solvers
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(solver: str, name: str) -> None:
    problem = NETWORKS[name]
    solution = solve(problem, solver)
    assert fits(solution.usage, problem.budget)
    assert solution.bound is not None and solution.loss is not None
    assert solution.bound <= solution.loss
    assert check(problem, solution).ok


@solvers
@pytest.mark.parametrize("name", NETWORKS)
def test_same_input_same_answer(solver: str, name: str) -> None:
    one, two = (solve(NETWORKS[name], solver).to_json() for _ in range(2))
    assert {**one, "wall_s": 0} == {**two, "wall_s": 0}


LIMITED = {
    "three budgets": network(1, groups=120, axes=3, correlated=True),
    "long chain": network(2, groups=150, edges=chain(150)),
    "dense": network(3, groups=24, edges=complete(24)),
}


@solvers
@pytest.mark.parametrize("name", LIMITED)
def test_time_limit_gives_the_best_found_with_its_gap(solver: str, name: str) -> None:
    problem = LIMITED[name]
    solution = solve(problem, solver, time_limit_s=0.1)
    assert solution.status in ("optimal", "feasible")
    assert solution.loss is not None and solution.bound is not None and solution.gap is not None
    assert solution.gap == pytest.approx(max(0, solution.loss - solution.bound) / solution.loss)
    assert check(problem, solution).ok


@solvers
def test_infeasible_names_what_is_attainable(solver: str) -> None:
    candidates = tuple(
        CandidateTerm(name=n, loss=0.0, costs={"us": us, "bytes": 9.0})
        for n, us in (("a", 3.0), ("b", 2.0))
    )
    problem = Problem(
        groups=tuple(Group(name=n, candidates=candidates) for n in ("g", "h")),
        budget={"bytes": 100.0, "us": 3.9},
    )
    answer = solve(problem, solver).to_json()
    assert answer["status"] == "infeasible"
    assert answer["assignment"] == {} and answer["usage"] == {}
    assert answer["loss"] is answer["bound"] is answer["gap"] is None
    assert answer["certificate"]["attainable"] == {"bytes": 18.0, "us": 4.0}
    assert answer["certificate"]["binding"] == "us"
    assert answer["certificate"]["least_budget"] == {"bytes": None, "us": 4.0}


@solvers
def test_infeasible_only_jointly(solver: str) -> None:
    candidates = (
        CandidateTerm(name="a", loss=0.0, costs={"us": 1.0, "bytes": 2.0}),
        CandidateTerm(name="b", loss=0.0, costs={"us": 2.0, "bytes": 1.0}),
    )
    problem = Problem(
        groups=(Group(name="g", candidates=candidates),), budget={"us": 1.0, "bytes": 1.0}
    )
    certificate = solve(problem, solver).certificate
    assert certificate["attainable"] == {"us": 1.0, "bytes": 1.0}
    assert certificate["binding"] is None
    assert certificate["least_budget"] == {"us": 2.0, "bytes": 2.0}
    assert "us 2 or bytes 2" in certificate["reason"]


@solvers
@pytest.mark.parametrize("axis", ["k0", "k1"])
def test_the_least_budget_would_do(solver: str, axis: str) -> None:
    roomy = network(6, groups=12, axes=2, edges=chain(12))
    alone = solve(replace(roomy, budget={a: 0.0 for a in roomy.budget}), solver)
    attainable = alone.certificate["attainable"]
    tight = replace(roomy, budget={a: 1.001 * least for a, least in attainable.items()})
    certificate = solve(tight, solver).certificate
    assert certificate["binding"] is None
    least = certificate["least_budget"][axis]
    enough = replace(tight, budget={**tight.budget, axis: least})
    assert solve(enough, solver).status in ("optimal", "feasible")
    less = replace(tight, budget={**tight.budget, axis: least - 1e-6 * abs(least)})
    assert solve(less, solver).status == "infeasible"


@solvers
def test_pairs_that_forbid_everything(solver: str) -> None:
    data = _two_groups()
    data["pairs"] = [{"a": "g0", "b": "g1", "loss": [[None, None], [None, None]]}]
    answer = solve_json(data, solver)
    assert answer["status"] == "infeasible"
    assert answer["certificate"]["attainable"] == {}


@solvers
def test_budget_is_inclusive(solver: str) -> None:
    data = _two_groups()
    data["budget"] = {"us": 0.1 + 0.2}
    assert solve_json(data, solver)["assignment"] == {"g0": "fast", "g1": "slow"}
    data["budget"] = {"us": 0.3}  # 0.1 + 0.2 exceeds 0.3 by rounding only
    assert solve_json(data, solver)["assignment"] == {"g0": "fast", "g1": "slow"}


def _two_groups() -> dict:
    return {
        "groups": [
            {
                "name": name,
                "candidates": [
                    {"name": "slow", "loss": loss, "costs": {"us": 0.2}},
                    {"name": "fast", "loss": 3.0, "costs": {"us": 0.1}},
                ],
            }
            for name, loss in (("g0", 2.0), ("g1", 1.0))
        ],
        "budget": {},
    }


@solvers
def test_output_form(solver: str) -> None:
    answer = solve_json(_two_groups(), solver)
    keys = ["status", "assignment", "loss", "usage", "bound", "gap", "solver", "wall_s"]
    assert [*answer] == [*keys, "certificate"]
    assert answer["solver"] == solver
    assert answer["usage"] == {"us": 0.4}


def test_unknown_solver_suggests_a_name() -> None:
    with pytest.raises(MpqError, match="exact"):
        solve_json(_two_groups(), "exakt")


def test_milp_leaves_standard_output_alone() -> None:
    program = (
        "from solve_instances import network\n"
        "from mpq_compile.solve import solve\n"
        "solve(network(2, groups=60, axes=3, correlated=True), 'milp', time_limit_s=2)\n"
        "print('end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "end\n"


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "1"])
def test_a_time_limit_is_a_positive_number(limit: float) -> None:
    with pytest.raises(PlanError) as caught:
        solve(NETWORKS["one budget"], time_limit_s=limit)
    assert caught.value.where == "time_limit_s"


def test_what_is_no_problem_is_refused() -> None:
    with pytest.raises(PlanError, match="not a Problem") as caught:
        solve(NETWORKS["one budget"].to_json())  # type: ignore[arg-type]
    assert "solve_json" in str(caught.value.remedy)


def test_every_budget_that_binds_is_named() -> None:
    problem = NETWORKS["three budgets"]
    low = {axis: 1.0 if axis != "k1" else bound for axis, bound in problem.budget.items()}
    reason = solve(replace(problem, budget=low)).certificate["reason"]
    assert "the least k0 is" in reason and "the least k2 is" in reason and "k1" not in reason

"""The checker accepts right answers and rejects altered ones, with code of its own."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from solve_instances import (
    assignments,
    brute_force,
    chain,
    network,
    residual,
    small_problem,
)

import mpq_compile as mpq
from mpq_compile.solve import Problem, Solution, certificate, evaluate, fits, solve
from mpq_compile.solve.certificate import enumeration
from mpq_compile.solve.certificate.bound import least, plan_steps
from mpq_compile.solve.certificate.terms import read_terms
from mpq_compile.solve.problem import relative_gap

check = mpq.check

PROBLEM = network(4, groups=12, axes=2, edges=chain(12))
SOLUTION = solve(PROBLEM)


def _altered(**parts: object) -> Solution:
    return replace(SOLUTION, **parts)  # type: ignore[arg-type]


def test_accepts_the_right_answer() -> None:
    report = check(PROBLEM, SOLUTION)
    assert report.ok
    assert report.proven == "enumeration"
    assert report.optimal
    assert report.lagrangian_bound == pytest.approx(SOLUTION.certificate["lagrangian_bound"])


def test_multipliers_alone_prove_the_greedy_bound() -> None:
    solution = solve(PROBLEM, "greedy")
    assert check(PROBLEM, solution).proven == "multipliers"


def test_cycles_are_eliminated() -> None:
    problem = network(4, groups=8, edges=residual(8))
    report = check(problem, solve(problem))
    assert report.ok and report.optimal
    assert report.lagrangian_bound is not None


LOSS = SOLUTION.loss or 0.0
MULTIPLIERS = SOLUTION.certificate["multipliers"]

ALTERATIONS = {
    "lower loss": {"loss": LOSS * 0.99},
    "another candidate": {"assignment": {**SOLUTION.assignment, "g0": "c0", "g1": "c5"}},
    "unknown candidate": {"assignment": {**SOLUTION.assignment, "g0": "w9a9"}},
    "missing group": {"assignment": {"g0": "c0"}},
    "lower usage": {"usage": {**SOLUTION.usage, "k0": 0.0}},
    "missing usage": {"usage": {}},
    "bound above the loss": {"bound": LOSS * 1.01},
    "optimal with a gap": {"bound": LOSS - 1.0},
    "wrong gap": {"gap": 0.5},
    "no loss": {"loss": None},
    "unknown status": {"status": "best"},
    "higher Lagrangian bound": {
        "certificate": {**SOLUTION.certificate, "lagrangian_bound": LOSS + 0.1}
    },
    "other multipliers": {
        "certificate": {
            **SOLUTION.certificate,
            "multipliers": {axis: value * 2 for axis, value in MULTIPLIERS.items()},
        }
    },
    "negative multiplier": {
        "certificate": {**SOLUTION.certificate, "multipliers": {**MULTIPLIERS, "k0": -1.0}}
    },
    "no certificate": {"certificate": {}},
    "multipliers that are no numbers": {
        "certificate": {**SOLUTION.certificate, "multipliers": dict.fromkeys(MULTIPLIERS, "1")}
    },
    "a Lagrangian bound that is none": {
        "certificate": {**SOLUTION.certificate, "lagrangian_bound": None}
    },
    "reduced costs of another form": {
        "certificate": {**SOLUTION.certificate, "reduced_costs": {"g0": None}}
    },
    "blocks of another form": {"certificate": {**SOLUTION.certificate, "blocks": [0, 1]}},
    "a certificate that is none": {"certificate": None},
    "an assignment that is none": {"assignment": None},
    "a usage that is none": {"usage": None},
    "a loss in words": {"loss": f"{LOSS}"},
    "a bound that is not a number": {"bound": math.nan},
    "reduced costs": {"certificate": {**SOLUTION.certificate, "reduced_costs": {"g0": [0.0] * 6}}},
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_rejects_altered_answers(name: str) -> None:
    report = check(PROBLEM, _altered(**ALTERATIONS[name]))
    assert not report.ok
    assert report.proven == "wrong"


def test_faults_are_of_one_line() -> None:
    report = check(PROBLEM, _altered(**ALTERATIONS["missing group"]))
    assert report.faults == ("assignment['g1']: the group has no candidate",)


def test_what_is_no_solution_is_refused() -> None:
    with pytest.raises(mpq.PlanError, match="not a Solution") as caught:
        check(PROBLEM, SOLUTION.to_json())  # type: ignore[arg-type]
    assert "Solution.from_json" in str(caught.value.remedy)
    with pytest.raises(mpq.PlanError, match="not a Problem"):
        check(PROBLEM.to_json(), SOLUTION)  # type: ignore[arg-type]


def test_an_answer_is_read_back_and_still_proven() -> None:
    read = Solution.from_json(json.loads(json.dumps(SOLUTION.to_json())))
    assert read == SOLUTION
    assert check(Problem.from_json(PROBLEM.to_json()), read).optimal
    with pytest.raises(mpq.PlanError, match="'gap' is missing"):
        Solution.from_json({k: v for k, v in SOLUTION.to_json().items() if k != "gap"})


def test_infeasible() -> None:
    problem = replace(PROBLEM, budget={**PROBLEM.budget, "k1": 1.0})
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert check(problem, solution).proven == "multipliers"
    # The same claim for a problem that has an answer does not stand.
    assert not check(PROBLEM, solution).ok


def test_shares_no_code_with_the_solvers() -> None:
    allowed = {"mpq_compile.errors", "mpq_compile.solve.problem"}
    for file in Path(certificate.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        own = {m for m in imported if m.startswith("mpq_compile.solve.certificate")}
        assert {m for m in imported - own if m.startswith("mpq_compile")} <= allowed


def _claiming(problem: Problem, assignment: dict[str, str], right: Solution) -> Solution:
    """Return ``assignment`` as if it were optimal, consistent in all that is evaluated."""
    loss, usage = evaluate(problem, assignment)
    return replace(right, assignment=assignment, loss=loss, bound=loss, usage=usage, gap=0.0)


@pytest.mark.parametrize("seed", range(120))
def test_agrees_with_enumeration_of_everything(seed: int) -> None:
    """Every optimum is proven, and of other assignments that fit none passes for one."""
    problem = small_problem(seed)
    best, solution = brute_force(problem), solve(problem)
    report = check(problem, solution)
    assert report.ok, report.faults
    if best is None:
        assert report.proven in ("multipliers", "enumeration")
        return
    assert report.optimal and report.bound is not None
    assert report.bound == pytest.approx(best[1], abs=1e-7)
    worse = [
        (assignment, loss)
        for assignment, loss, usage in assignments(problem)
        if best[1] + 1e-6 < loss < math.inf and fits(usage, problem.budget)
    ]
    for assignment, _ in worse[:5]:
        assert not check(problem, _claiming(problem, assignment, solution)).ok


@pytest.mark.parametrize("seed", range(40))
def test_the_bound_is_the_least_lagrangian(seed: int) -> None:
    problem = small_problem(seed)
    terms = read_terms(problem)
    price = np.random.default_rng(seed).uniform(0, 2, len(terms.axes))
    steps = plan_steps(terms)
    assert steps is not None
    value = least(terms, steps, 1.0, price)
    expected = min(
        loss + sum(p * usage[a] for p, a in zip(price, terms.axes, strict=True))
        for _, loss, usage in assignments(problem)
    )
    assert value == pytest.approx(expected - float(price @ terms.limit))


def test_a_bound_that_is_too_high_is_found() -> None:
    feasible = replace(
        SOLUTION,
        status="feasible",
        assignment={g.name: "c0" for g in PROBLEM.groups},
    )
    loss, usage = evaluate(PROBLEM, feasible.assignment)
    assert fits(usage, PROBLEM.budget) and loss > 1.2 * LOSS
    for bound, right in ((LOSS * 1.1, False), (LOSS, True), (LOSS * 0.999, True)):
        gap = relative_gap(loss, bound)
        claim = replace(feasible, loss=loss, usage=usage, bound=bound, gap=gap)
        report = check(PROBLEM, claim)
        assert report.ok == right
        assert not report.optimal
        assert not right or report.bound is not None and report.bound >= bound - 1e-9


def test_what_is_too_large_is_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enumeration, "IN_ALL", 2)
    report = check(PROBLEM, SOLUTION)
    assert report.ok and not report.optimal
    assert report.proven == "search"
    assert report.bound is not None and report.bound < LOSS
    assert "verified, optimality not proven here" in report.summary


def test_whole_losses_lift_the_bound() -> None:
    whole = network(5, groups=30)
    groups = tuple(
        replace(g, candidates=tuple(replace(c, loss=round(c.loss * 9)) for c in g.candidates))
        for g in whole.groups
    )
    problem = replace(whole, groups=groups)
    report = check(problem, solve(problem))
    assert report.optimal and report.lagrangian_bound is not None and report.bound is not None
    assert report.lagrangian_bound < report.bound == round(report.bound)

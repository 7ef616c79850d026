"""The checker accepts right answers and rejects altered ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
from solve_instances import chain, network, residual

from mpq_compile.solve import Solution, solve
from mpq_compile.solve.certificate import check

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
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_rejects_altered_answers(name: str) -> None:
    report = check(PROBLEM, _altered(**ALTERATIONS[name]))
    assert not report.ok
    assert report.proven == "wrong"


def test_infeasible() -> None:
    problem = replace(PROBLEM, budget={**PROBLEM.budget, "k1": 1.0})
    solution = solve(problem)
    assert solution.status == "infeasible"
    assert check(problem, solution).proven == "multipliers"
    # The same claim for a problem that has an answer does not stand.
    assert not check(PROBLEM, solution).ok

"""A plan carries its proof: it can be checked, and solved again, without the network."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from tradeoff_net import ANALYTIC, NAMES, X, model

import mpq_compile as mpq
from mpq_compile.solve import solve
from mpq_compile.solve.plan_proof import problem_of, solution_of


@cache
def plan(**options: Any) -> mpq.Plan:
    return mpq.plan(model(), X[:1], [X], target=ANALYTIC, candidates=NAMES, **options)


FORWARD = {"budget": mpq.Budget(avg_bits=4.5, bops=1.6e6)}
CASES: dict[str, dict[str, Any]] = {
    "least loss": FORWARD,
    "no budget": {},
    "pairs": {"budget": mpq.Budget(avg_bits=4.5), "metric": "pairwise"},
    "greedy": {**FORWARD, "solver": "greedy"},
    "least size": {"budget": mpq.Budget(max_loss=0.05), "minimize": "size"},
    "a measured drop": {
        "budget": mpq.Budget(max_drop=0.05),
        "minimize": "bops",
        "evaluate": "noise",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_proof_of_a_plan_holds(case: str) -> None:
    """After a journey through JSON, as in a file or in an artifact."""
    made = mpq.Plan.from_json(json.loads(json.dumps(plan(**CASES[case]).to_json())))
    report = mpq.check_plan(made)
    assert report.ok, report.faults
    assert report.optimal or case == "greedy"
    # Another solver, given what the plan carries, finds nothing better.
    other = solve(problem_of(made), "milp")
    assert other.loss == pytest.approx(solution_of(made).loss) or case == "greedy"


def _other(site: str) -> mpq.Plan:
    made = plan(**FORWARD)
    name = next(name for name in NAMES if name != made.assignment[site])
    return replace(made, assignment={**made.assignment, site: name})


def _altered_problem() -> mpq.Plan:
    """Return a plan whose problem makes the first site's losses look like nothing."""
    made = plan(**FORWARD)
    problem = json.loads(json.dumps(made.certificate["problem"]))
    for term in problem["groups"][0]["candidates"]:
        term["loss"] = 0.0
    return replace(made, certificate={**made.certificate, "problem": problem})


def _altered_table() -> mpq.Plan:
    """Return a plan whose table, which people read, says something else than its problem."""
    made = plan(**FORWARD)
    return replace(made, table=[{**row, "loss": 123.0} for row in made.table])


ALTERED = {
    "another table": _altered_table,
    "another candidate": lambda: _other(next(iter(plan(**FORWARD).assignment))),
    "a lower loss": lambda: replace(plan(**FORWARD), loss=plan(**FORWARD).loss * 0.9),
    "another problem": _altered_problem,
    "a missing site": lambda: replace(
        plan(**FORWARD), assignment=dict(list(plan(**FORWARD).assignment.items())[1:])
    ),
    "a tighter budget": lambda: replace(plan(**FORWARD), budget={"avg_bits": 2.0}),
    "a higher bound": lambda: replace(
        plan(**FORWARD), certificate={**plan(**FORWARD).certificate, "bound": 1e9}
    ),
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_plan_is_found_out(case: str) -> None:
    report = mpq.check_plan(ALTERED[case]())
    assert not report.ok and report.proven == "wrong"


class Recurring(nn.Module):
    """A layer that is used three times: one weight, one candidate, three rows of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8] → [B, 4]."""
        for _ in range(3):
            x = torch.relu(self.layer(x))
        return self.head(x)


def test_ties_are_compared_as_a_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    budget = {"size_mb": 0.0003}
    made = mpq.plan(
        Recurring().eval(), x[:1], [x], target=ANALYTIC, candidates=NAMES, budget=budget
    )
    assert mpq.check_plan(made).ok
    rows = [
        {**r, "size_bytes": r["size_bytes"] + (r["site"] == "layer:linear#2")} for r in made.table
    ]
    report = mpq.check_plan(replace(made, table=rows))
    assert "size_bytes of layer:linear#0, layer:linear#1, layer:linear#2" in report.faults[0]


def test_a_plan_without_proof_is_told() -> None:
    made = replace(plan(**FORWARD), certificate={}, solver="given")
    with pytest.raises(mpq.PlanError, match="carries no proof"):
        mpq.check_plan(made)

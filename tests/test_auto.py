"""``solver="auto"``: never worse, by the network's own loss, than what its proposers find."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.auto import PROPOSERS, plan_auto
from mpq_compile.network_loss import NetworkLoss
from mpq_compile.session import Session

NAMES = ["w8a8", "w6a8", "w4a8", "w3a8", "w2a8"]
BITS = 4.0


class Residual(nn.Module):
    """Sites of unequal size whose errors meet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.fc = nn.Conv2d(6, 12, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.c(x + self.b(x)))
        return self.fc(x.mean((2, 3)))


def session(metric: str, solver: str) -> Session:
    torch.manual_seed(0)
    x = 2 * torch.randn(40, 3, 8, 8)
    return Session(
        Residual().eval(), x[:1], [x], "bit_serial", candidates=NAMES, metric=metric, solver=solver
    )


def test_it_is_no_worse_than_any_proposal() -> None:
    budget = mpq.Budget(avg_bits=BITS)
    own = session("auto", "auto")
    plan = plan_auto(own, budget)
    loss = NetworkLoss(own)
    assert plan.predicted.avg_bits <= BITS
    assert plan.solver == "auto"
    assert plan.certificate["loss"] == pytest.approx(loss(plan.assignment))
    _stands_as_it_says(plan, own)
    for metric in PROPOSERS:
        other = session(metric, "exact").solve(budget)
        assert loss(plan.assignment) <= loss(other.assignment) * (1 + 1e-9)
    assert plan_auto(session("auto", "auto"), budget).assignment == plan.assignment


def _stands_as_it_says(plan: mpq.Plan, own: Session) -> None:
    """The plan carries the problem of its table: within the budget, and no less than its bound."""
    report = mpq.check_plan(plan)
    assert report.ok, report.faults
    best = own.solve(mpq.Budget(avg_bits=BITS)).loss
    assert plan.loss is not None and best is not None
    assert plan.certificate["bound"] == pytest.approx(best)
    gap = (plan.loss - best) / max(1.0, plan.loss)
    assert plan.certificate["gap"] == pytest.approx(gap, abs=1e-9)
    assert report.optimal == (plan.certificate["status"] == "optimal") == (gap <= 1e-9)


def test_it_is_a_name_of_plan() -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(40, 3, 8, 8)
    plan = mpq.plan(
        Residual().eval(),
        x[:1],
        [x],
        target="bit_serial",
        budget=mpq.Budget(avg_bits=BITS),
        candidates=NAMES,
        metric="auto",
        solver="auto",
    )
    assert plan.metric == plan.solver == "auto"
    assert any("network's own loss" in note for note in plan.notes)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(mpq.InfeasibleBudgetError):
        plan_auto(session("auto", "auto"), mpq.Budget(avg_bits=1.5))

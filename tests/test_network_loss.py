"""The loss of a whole network as a black box."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq_compile.errors import InfeasibleBudgetError
from mpq_compile.network_loss import NetworkLoss, plan_by_network_loss
from mpq_compile.sensitivity.sqnr import noise_to_signal
from mpq_compile.session import Session
from mpq_compile.solve.plan_proof import check_plan
from mpq_compile.types import Budget

NAMES = ["w8a8", "w4a8", "w2a8"]


class Residual(nn.Module):
    """Three sites whose errors meet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.fc((x + self.b(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def session() -> Session:
    torch.manual_seed(0)
    x = 2 * torch.randn(40, 3, 6, 6)
    return Session(Residual(), x[:1], [x], "bit_serial", candidates=NAMES)


def torch_divergence(value: Tensor, exact: Tensor) -> float:
    """Return the mean over samples of KL(softmax(exact) ‖ softmax(value))."""
    scores = [logits.double().log_softmax(-1) for logits in (value, exact)]
    return float(F.kl_div(*scores, reduction="batchmean", log_target=True))


def test_of_classes_it_is_torchs_divergence(session: Session) -> None:
    loss = NetworkLoss(session)
    found = loss({site.id: "w2a8" for site in session.network.sites})
    x = torch.cat([batch.inputs[0] for batch in loss.batches])
    with torch.no_grad():  # the quantizers are as they were in the assignment
        value, exact = loss.graph.module(x)[0], session.network.module(x)[0]
    assert found == pytest.approx(torch_divergence(value, exact), rel=1e-6)


def test_loss_is_that_of_the_whole_network(session: Session) -> None:
    loss = NetworkLoss(session)
    sites = [site.id for site in session.network.sites]
    assert loss(dict.fromkeys(sites, "fp32")) == pytest.approx(0.0, abs=1e-12)
    coarse, fine = (loss(dict.fromkeys(sites, name)) for name in ("w2a8", "w8a8"))
    assert coarse > 10 * fine > 0
    # The float graph with quantizers and the integer oracle of the assignment agree.
    assignment = dict(zip(sites, NAMES, strict=True))
    batches = [batch.inputs[0] for batch in session.batches]
    with torch.no_grad():
        exact = torch.cat([session.float_graph()(x) for x in batches])
        value = torch.cat([session.reference(assignment)(x) for x in batches])
    assert loss(assignment) == pytest.approx(torch_divergence(value, exact), rel=0.2)


def test_each_assignment_runs_once(session: Session) -> None:
    loss = NetworkLoss(session, samples=8)
    calls: list[int] = []

    def counted(outputs, reference) -> float:
        calls.append(1)
        return noise_to_signal(outputs, reference)

    loss.distance = counted
    assignment = {site.id: "w4a8" for site in session.network.sites}
    assert loss(assignment) == loss(dict(reversed(assignment.items())))
    assert len(calls) == len(loss.batches) == 1


@pytest.mark.parametrize("solver", ["gcpso", "ppso", "greedy"])
def test_plan_is_within_the_budget_and_no_worse_than_the_tables(
    session: Session, solver: str
) -> None:
    loss, budget = NetworkLoss(session), Budget(avg_bits=4.5)
    plan = plan_by_network_loss(session, budget, solver, evaluations=20, loss=loss)
    assert plan.predicted.avg_bits <= 4.5
    assert plan.solver == solver and "network's own loss" in plan.notes[-1]
    assert loss(plan.assignment) == plan.certificate["loss"]
    assert check_plan(plan).ok
    assert loss(plan.assignment) <= loss(session.solve(budget).assignment)


def test_exhaustive_finds_the_least_loss_of_all(session: Session) -> None:
    loss = NetworkLoss(session)
    plan = plan_by_network_loss(session, Budget(avg_bits=4.5), "exhaustive", loss=loss)
    sites = [site.id for site in session.network.sites]
    weights = [site.weight_count for site in session.network.sites]
    fitting = [
        dict(zip(sites, names, strict=True))
        for names in itertools.product(NAMES, repeat=len(sites))
        if sum(int(n[1]) * w for n, w in zip(names, weights, strict=True)) <= 4.5 * sum(weights)
    ]
    assert plan.certificate["loss"] == min(map(loss, fitting))


def test_a_budget_that_cannot_be_kept(session: Session) -> None:
    with pytest.raises(InfeasibleBudgetError):
        plan_by_network_loss(session, Budget(avg_bits=1.0))

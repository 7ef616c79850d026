"""The end of a budget's loop where the machine does not settle: real networks, given verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from mpq_compile import closed_loop, costing
from mpq_compile.cost.table import MeasuredCosts, counted_costs
from mpq_compile.errors import InfeasibleBudgetError
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session
from mpq_compile.types import Budget, Candidate, CostTable, Verification

X = torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(1))


# What a site is believed to take.
SITE_US = {"fp32": 100.0, "w8a8": 30.0}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    """A real session but for its times, which are given: nothing here depends on this machine."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip
    session = Session(
        model, X[:1], [X], candidates=list(SITE_US), recipe=Recipe(rounding="nearest")
    )
    network = session.network
    costs = {
        site.id: {
            name: {**counted_costs(network, site, Candidate.parse(name)), "latency_us": us}
            for name, us in SITE_US.items()
        }
        for site in network.sites
    }
    kernels = {site: {name: f"{site} {name}" for name in SITE_US} for site in costs}
    known = MeasuredCosts(costs=CostTable(costs=costs), kernels=kernels, estimated={}, estimator="")
    monkeypatch.setitem(session.costing.__dict__, "measured", known)
    monkeypatch.setattr(costing, "network_anchors", lambda *_, **__: [])
    return session


class Verdicts:
    """Says the next of ``given`` of each network, (status, latency over the budget)."""

    def __init__(self, given: Sequence[tuple[str, float]]) -> None:
        self.left = list(given)
        self.networks: list[CompiledNetwork] = []

    def __call__(
        self, network: CompiledNetwork, budget: Mapping[str, float], number: int
    ) -> Verification:
        status, share = self.left.pop(0)
        ms = share * budget["latency_ms"]
        fields: dict[str, Any] = {name: 0 for name in Verification.__dataclass_fields__}
        fields |= {"latency_ms": ms, "latency_ms_lower95": 0.99 * ms, "rounds": number}
        fields |= {"settled": status != "unsettled"}
        status = "rejected" if status == "unsettled" else status
        seen = Verification(**fields | {"latency_ms_upper95": 1.01 * ms, "status": status})
        self.networks.append(network)
        network.verification = seen
        return seen


def compiled(
    session: Session, monkeypatch: pytest.MonkeyPatch, given: Sequence[tuple[str, float]]
) -> tuple[CompiledNetwork, Verdicts]:
    """Compile for a budget that float keeps; rounds are judged as given."""
    verdicts = Verdicts(given)
    monkeypatch.setattr(closed_loop, "verified", verdicts)
    budget = Budget(latency_ms=2e-3 * SITE_US["fp32"] * len(session.network.sites))
    return closed_loop.compile_session(session, budget), verdicts


def test_a_faster_network_is_tried_before_the_end(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was slow beside other work; what was seen makes the next plan a faster one."""
    network, verdicts = compiled(session, monkeypatch, [("inconclusive", 1.3), ("accepted", 0.9)])
    first, second = verdicts.networks
    assert network is second and network.verification.status == "accepted"
    assert set(first.plan.assignment.values()) == {"fp32"}
    assert "w8a8" in second.plan.assignment.values()


@pytest.mark.parametrize("share", [1.3, 9.0])
def test_where_nothing_settles_the_last_network_says_so(
    session: Session, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Not that the budget is infeasible, even where that is predicted from what was seen."""
    given = [("inconclusive", share)] * closed_loop.MAX_ROUNDS
    network, verdicts = compiled(session, monkeypatch, given)
    assert network is verdicts.networks[-1]
    assert network.verification.status == "inconclusive"


@pytest.mark.parametrize("status", ["rejected", "unsettled"])
def test_an_infeasible_budget_says_whether_the_machine_was_busy(
    session: Session, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    with pytest.raises(InfeasibleBudgetError) as caught:
        compiled(session, monkeypatch, [(status, 9.0)] * closed_loop.MAX_ROUNDS)
    busy = status == "unsettled"
    assert ("a machine that was not as usual" in caught.value.message) == busy
    assert ("free the machine" in (caught.value.remedy or "")) == busy

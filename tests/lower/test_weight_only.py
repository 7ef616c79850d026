"""Integer weights with bf16 activations: every operator, every tier, every width."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import BF16_TOLERANCE, assert_equal, decibels
from torch import Tensor, nn

from mpq_compile.kernels.tier import host_tiers
from mpq_compile.pipeline import assign_session
from mpq_compile.session import Session

WIDTHS = (8, 7, 6, 5, 4, 3, 2)


class EveryOperator(nn.Module):
    """A convolution, a depthwise, a grouped, a transposed one, a residual, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False)
        self.grouped = nn.Conv2d(20, 20, 1, groups=2)
        self.up = nn.ConvTranspose2d(20, 9, 2, stride=2)
        self.fc = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.relu(self.depthwise(x))
        x = F.relu(self.grouped(x) + x)
        return self.fc(F.relu6(self.up(x)).mean((2, 3)))


def session_for(tier: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Session, Tensor]:
    """Return a session whose kernels are of ``tier``, and inputs."""
    monkeypatch.setenv("MPQ_TIER", tier)
    torch.manual_seed(0)
    model, x = EveryOperator().eval(), torch.randn(12, 3, 9, 8)
    return Session(model, (x[:1],), [(x,)]), x


@pytest.mark.parametrize("tier", [tier.name for tier in host_tiers()])
def test_networks_equal_the_oracle(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session, x = session_for(tier, monkeypatch)
    for candidate, least in (("w8a16", 35), ("w4a16", 12)):
        network = assign_session(session, candidate)
        assert_equal(network(x), network.reference(x), BF16_TOLERANCE)
        assert decibels(network(x), session.model(x)) > least
        assert {row.compute for row in network.audit} == {"weight-only bf16"}
        assert {row.tier for row in network.audit} == {tier}


def test_every_width_is_stored_at_its_true_size(monkeypatch: pytest.MonkeyPatch) -> None:
    session, x = session_for(host_tiers()[0].name, monkeypatch)
    sites = session.network.sites
    sizes = set()
    for first in range(len(WIDTHS)):
        names = {
            site.id: f"w{WIDTHS[(first + i) % len(WIDTHS)]}a16" for i, site in enumerate(sites)
        }
        network = assign_session(session, names)
        assert_equal(network(x), network.reference(x), BF16_TOLERANCE)
        assert network.size_bytes == network.plan.predicted.size_bytes
        assert [f"w{row.stored_bits}a16" for row in network.audit] == list(names.values())
        sizes.add(network.size_bytes)
    assert len(sizes) == len(WIDTHS)


def test_weights_alone_lose_less_than_weights_and_activations() -> None:
    torch.manual_seed(0)
    model, x = EveryOperator().eval(), torch.randn(12, 3, 9, 8)
    session = Session(model, (x[:1],), [(x,)], candidates=["w4a16", "w4a8", "w8a16", "w8a8"])
    for losses in session.sensitivity.loss.values():
        assert losses["w4a16"] <= losses["w4a8"] * 1.05
        assert losses["w8a16"] <= losses["w8a8"]

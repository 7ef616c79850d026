"""A weight that several sites read: stored and counted once, with its scales."""

from __future__ import annotations

import pytest
import torch
from comparison import FLOAT_TOLERANCE, assert_equal
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.pipeline import assign_session
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session
from mpq_compile.types import Candidate

STEPS, INPUTS, HIDDEN = 6, 16, 32


class Last(nn.Module):
    """[B, 6, 16] → [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def session(rounding: str = "gptq") -> tuple[Session, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(128, STEPS, INPUTS)
    recipe = Recipe(rounding=rounding)
    return Session(Last().eval(), (x[:1],), [(x,)], recipe=recipe), x


def stored(bits: int) -> int:
    """Return the bytes of the network: codes, a scale for each output, biases that are not zero."""
    outputs = 4 * HIDDEN
    codes = outputs * (INPUTS + HIDDEN) + HIDDEN * 5
    return codes * bits // 8 + 4 * (2 * outputs + 5) + 4 * (outputs + 5)


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize("name,bits", [("w8a8", 8), ("w4a8", 4)])
def test_scales_are_stored_once(name: str, bits: int, rounding: str) -> None:
    found, x = session(rounding)
    network = assign_session(found, name)
    assert_equal(network(x[:9]), network.reference(x[:9]), FLOAT_TOLERANCE)
    assert network.size_bytes == network.plan.predicted.size_bytes == stored(bits)


def test_average_bits_count_a_weight_once() -> None:
    found, _ = session()
    names = {site.id: "w8a8" for site in found.network.sites}
    names.update({s.id: "w4a8" for s in found.network.sites if "weight_hh" in s.id})
    predicted = found.plan_for(names, mpq.Budget(size_mb=1.0)).predicted
    inner, hidden, head = 4 * HIDDEN * INPUTS, 4 * HIDDEN * HIDDEN, 5 * HIDDEN
    expected = (8 * (inner + head) + 4 * hidden) / (inner + hidden + head)
    assert predicted.avg_bits == pytest.approx(expected)


def test_a_bound_on_the_average_is_kept() -> None:
    found, _ = session()
    plan = found.solve(mpq.Budget(avg_bits=6.0))
    sites = found.network.sites
    widths = {site.id: Candidate.parse(plan.assignment[site.id]).weight_bits for site in sites}
    bits = sum(s.stored_weights * widths[s.id] for s in sites)
    assert bits / sum(s.stored_weights for s in sites) <= 6.0


class Repeated(nn.Module):
    """One convolution, three times: a parameter whose lifted copies are scaled apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(16, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(self.conv(x))
        return self.head(x.mean(2))


@pytest.mark.parametrize("equalize", ["none", "cross_layer", "auto"])
def test_equalization_makes_weights_of_their_own(equalize: str) -> None:
    torch.manual_seed(1)
    x = torch.randn(128, 16, 12) * torch.logspace(-1, 0.5, 16)[:, None]
    recipe = Recipe(rounding="nearest", equalize=equalize)
    found = Session(Repeated().eval(), (x[:1],), [(x,)], recipe=recipe)
    network = assign_session(found, "w4a8")
    assert_equal(network(x[:5]), network.reference(x[:5]))
    assert network.size_bytes == network.plan.predicted.size_bytes
    for site in found.network.sites:
        owner = found.network.owner_of[site.id]
        assert torch.equal(found.network.weight(owner), found.network.weight(site.id))

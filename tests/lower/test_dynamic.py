"""Activations quantized at run time: networks equal their oracle bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import FLOAT_TOLERANCE, assert_equal, decibels
from operator_nets import CASES
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.kernels.tier import host_tiers
from mpq_compile.pipeline import assign_session
from mpq_compile.quant import ops as qops
from mpq_compile.session import Session


class Block(nn.Module):
    """Three projections of one tensor, a residual, a wide layer: a transformer without mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.q(x) + self.k(x)) + self.v(x)
        return self.down(F.relu(self.up(y))) + y


def uneven_rows(samples: int) -> Tensor:
    """Return tokens whose magnitudes differ a thousandfold."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, 64, generator=generator)
    return x * torch.logspace(-2, 1, 5)[:, None]


def session_for(model: nn.Module, x: Tensor, **options: object) -> Session:
    """Return a session compiled for one sample."""
    torch.manual_seed(0)
    return Session(model.eval(), (x[:1],), [(x,)], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tier", [tier.name for tier in host_tiers()])
def test_networks_equal_the_oracle_on_every_tier(
    tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQ_TIER", tier)
    x = uneven_rows(6)
    session = session_for(Block(), x)
    for candidate, least in (("w8a8d", 30), ("w4a8g32d", 15)):
        network = assign_session(session, candidate)
        assert_equal(network(x), network.reference(x))
        assert decibels(network(x), session.model(x)) > least
        assert {(row.compute, row.tier) for row in network.audit} == {("int8 rows", tier)}


@pytest.mark.parametrize("rows", [1, 3])
def test_few_rows_read_packed_weights(rows: int) -> None:
    x = torch.randn(8, rows, 64)
    for candidate, bits in (("w4a8d", 4), ("w2a8d", 2)):
        network = assign_session(session_for(Block(), x), candidate)
        assert_equal(network(x), network.reference(x))
        assert all(f"_w{bits}_d_" in row.kernel for row in network.audit)


def test_dynamic_static_and_float_sites_mix() -> None:
    x = uneven_rows(6)
    session = session_for(Block(), x)
    names = ("w8a8d", "w8a8", "w4a8d", "fp32", "w8a8d")
    sites = session.network.sites
    network = assign_session(session, {s.id: n for s, n in zip(sites, names, strict=True)})
    assert_equal(network(x), network.reference(x), FLOAT_TOLERANCE)
    assert network.size_bytes == network.plan.predicted.size_bytes


def test_sites_that_read_one_tensor_quantize_it_once() -> None:
    x = uneven_rows(4)
    reference = session_for(Block(), x).reference(dict.fromkeys(sites_of(Block(), x), "w8a8d"))
    calls = [node for node in reference.graph.nodes if node.target is qops.QUANTIZE_ROWS]
    assert len(calls) == 3


def sites_of(model: nn.Module, x: Tensor) -> list[str]:
    """Return the site names of a model."""
    return [site.id for site in session_for(model, x).network.sites]


def test_rows_of_their_own_scale_lose_less() -> None:
    """Tokens of small magnitude keep their digits, which one scale for all tokens cannot."""
    x = uneven_rows(6)
    session = session_for(Block(), x, candidates=["w8a8", "w8a8d"])
    exact = session.model(x)
    errors = {}
    for name in ("w8a8", "w8a8d"):
        found = session.reference(dict.fromkeys(sites_of(Block(), x), name))(x)
        errors[name] = decibels(found[:, 0], exact[:, 0])
    assert errors["w8a8d"] > errors["w8a8"] + 10
    for losses in session.sensitivity.loss.values():
        assert 0 < losses["w8a8d"] < 1


@pytest.mark.parametrize("name", ["linears", "attention"])
def test_networks_of_other_operators(name: str) -> None:
    case = CASES[name]
    session = Session(case.model(), case.inputs(1), [case.inputs(24, seed=1)])
    names = {s.id: "w8a8d" if s.op == "linear" else "w8a8" for s in session.network.sites}
    network, inputs = assign_session(session, names), case.inputs(5, seed=2)
    assert_equal(network(*inputs), network.reference(*inputs), 0 if case.exact else 1e-2)


@pytest.mark.parametrize("candidate", ["w8a4d", "w4a16d"])
def test_other_widths_are_refused(candidate: str) -> None:
    x = uneven_rows(2)
    session = session_for(Block(), x)
    with pytest.raises(mpq.LoweringError, match="at run time"):
        session.reference({site.id: candidate for site in session.network.sites})

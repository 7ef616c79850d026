"""Tied sites choose together, and lose together: their errors go the same way."""

from __future__ import annotations

import pytest
import torch
from metric_nets import Setting, setting
from torch import Tensor, nn

from mpq_compile.sensitivity.base import Choices, QuantizedGraph, leading, tied, with_followers
from mpq_compile.sensitivity.heads import find_heads
from mpq_compile.sensitivity.pairwise import PairwiseMetric
from mpq_compile.sensitivity.slices import Slice
from mpq_compile.shared_tasks import measured_sensitivity
from mpq_compile.types import SensitivityTable

NAMES = ("fp32", "w8a8", "w6a8", "w4a8")


class Steps(nn.Module):
    """An LSTM of five steps, and a layer that is used twice: [B, 5, 6] → [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 12, batch_first=True)
        self.mixer, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(x)[0][:, -1]
        x = torch.tanh(self.mixer(x)) + x
        return self.head(torch.tanh(self.mixer(x)) + x)


@pytest.fixture(scope="module")
def net() -> Setting:
    torch.manual_seed(5)
    model = Steps()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return setting(model, (torch.randn(64, 5, 6),))


def choices_of(net: Setting) -> Choices:
    return {site.id: NAMES for site in net.network.sites}


def table(net: Setting, metric: str) -> SensitivityTable:
    return measured_sensitivity(metric, net.network, net.calibration, net.batches, choices_of(net))


def divergence_of(net: Setting, assignment: dict[str, str]) -> float:
    """Return the divergence of an assignment from float, by running it."""
    graph = QuantizedGraph(net.network, net.calibration)
    (head,) = find_heads(graph, [Slice(start=0, batch=net.batches[0])])
    found = []
    for names in ({}, assignment):
        graph.assign(names)
        with torch.no_grad():
            scores = [graph.module(*batch.inputs)[0] for batch in net.batches]
        found.append(torch.cat(scores).double().log_softmax(1).unsqueeze(2))
    return float(head.divergence(*found).mean())


def groups(net: Setting) -> list[list[str]]:
    found = [members for members in tied(net.network).values() if len(members) > 1]
    assert sorted({len(members) for members in found}) == [2, 4]
    return [members for i, members in enumerate(found) if members not in found[:i]]


def test_the_first_site_stands_for_all(net: Setting) -> None:
    leaders = leading(net.network, choices_of(net))
    assert list(leaders) == list(dict.fromkeys(m[0] for m in tied(net.network).values()))
    losses = table(net, "kl").loss
    assert set(losses) == {site.id for site in net.network.sites}
    for members in groups(net):
        assert losses[members[0]]["w4a8"] > 0
        assert all(set(losses[site].values()) == {0.0} for site in members[1:])


def noise_of(net: Setting, assignment: dict[str, str]) -> float:
    """Return the noise of an assignment over the signal, by running it."""
    graph = QuantizedGraph(net.network, net.calibration)
    outputs = []
    for names in ({}, assignment):
        graph.assign(names)
        with torch.no_grad():
            found = [graph.module(*batch.inputs)[0] for batch in net.batches]
        outputs.append(torch.cat(found).double())
    exact, found = outputs
    return float((found - exact).square().sum() / exact.square().sum())


def test_their_loss_is_that_of_all_together(net: Setting) -> None:
    losses = table(net, "sqnr").loss
    for members in groups(net):
        for name in NAMES[1:]:
            together = noise_of(net, dict.fromkeys(members, name))
            assert losses[members[0]][name] == pytest.approx(together, rel=1e-4)


def test_alone_they_lose_less_than_together(net: Setting) -> None:
    """Why the sum of what each loses alone is not their loss."""
    for members in groups(net):
        together = noise_of(net, dict.fromkeys(members, "w4a8"))
        alone = [noise_of(net, {site: "w4a8"}) for site in members]
        assert together > 1.3 * sum(alone)


def test_what_a_metric_says_of_followers_does_not_count(net: Setting) -> None:
    """A metric of the user's may measure every site: each follower has the loss of all, then."""
    choices = choices_of(net)
    every = SensitivityTable(
        metric="mine", unit="", loss={site: dict.fromkeys(NAMES, 1.0) for site in choices}
    )
    found = with_followers(net.network, every, choices)
    assert sum(losses["w8a8"] for losses in found.loss.values()) == len(
        leading(net.network, choices)
    )


@pytest.mark.parametrize("metric", ["fisher", "gauss_newton"])
def test_slopes_of_tied_sites_add_up(net: Setting, metric: str) -> None:
    losses = table(net, metric).loss
    for members in groups(net):
        together = divergence_of(net, dict.fromkeys(members, "w6a8"))
        assert losses[members[0]]["w6a8"] == pytest.approx(together, rel=0.4)


@pytest.mark.parametrize("scope", ["near", "all"])
@pytest.mark.parametrize("form", ["divergence", "gauss_newton"])
def test_pairs_are_of_the_first_sites(net: Setting, form: str, scope: str) -> None:
    leaders = leading(net.network, choices_of(net))
    metric = PairwiseMetric(form=form, scope=scope)  # type: ignore[arg-type]
    found = metric(net.network, net.calibration, net.batches, leaders).pairs
    assert found and {site for pair in found for site in pair} <= set(leaders)
    order = list(leaders)
    assert all(order.index(a) < order.index(b) for a, b in found)
    if scope == "all":
        assert len(found) == len(order) * (len(order) - 1) // 2

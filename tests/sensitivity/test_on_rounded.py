"""Sensitivities on rounded weights: of which weights a table is, and what records it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.errors import MpqError
from mpq_compile.passes.rounding import rounded_weight
from mpq_compile.recipe import Recipe
from mpq_compile.sensitivity import checkpoint
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.slices import cut
from mpq_compile.sensitivity.sqnr import SqnrMetric, noise_to_signal
from mpq_compile.session import Session
from mpq_compile.types import Candidate

NAMES = ("w2a8", "w3a8", "w4a8")


class Residual(nn.Module):
    """A skip around a convolution, a depthwise one, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.one(x))
        return self.head(F.relu(self.depthwise(x)).mean((2, 3)))


def images() -> Tensor:
    """Images whose neighbouring pixels go together: of white noise, rounding learns little."""
    noise = torch.randn(96, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    return F.avg_pool2d(noise, 3, 1, 1)


def session(**recipe: str) -> Session:
    torch.manual_seed(0)
    x = images()
    return Session(
        Residual().eval(),
        x[:1],
        [x],
        target="bit_serial",
        candidates=[*NAMES, "w8a8"],
        recipe=Recipe(**recipe),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("weights", ["nearest", "rounded"])
def test_a_table_predicts_single_switches_exactly(weights: str) -> None:
    """The SQNR of one switched site is the loss itself; so its table is of these weights."""
    found, x = session(sensitivity_on=weights), images()[: SqnrMetric().samples]
    table = found.sensitivity_by("sqnr").loss
    other = found.sensitivity_by("sqnr", "rounded" if weights == "nearest" else "nearest").loss
    graph = QuantizedGraph(found.network, found.seen_for(found.choices))
    for site in found.network.sites:
        for name in NAMES:
            graph.assign({})
            exact = graph.module(x)
            graph.assign({site.id: name})
            true = noise_to_signal(graph.module(x), exact)
            assert table[site.id][name] == pytest.approx(true, rel=1e-4)
        assert other[site.id] != table[site.id]


def test_a_table_on_rounded_weights_is_of_what_per_site_builds() -> None:
    """The oracle rounds a little more than quantizers do: scales, biases, what a site stores."""
    found, x = session(sensitivity_on="rounded", rounding="per_site"), images()
    x = x[: SqnrMetric().samples]
    exact = found.float_graph()(x)
    table, other = found.sensitivity_by("sqnr").loss, found.sensitivity_by("sqnr", "nearest").loss
    rest = {site.id: "fp32" for site in found.network.sites}
    for site in rest:
        outputs = found.reference({**rest, site: "w2a8"})(x)
        true = noise_to_signal([outputs], [exact])
        assert table[site]["w2a8"] == pytest.approx(true, rel=0.05)
        assert other[site]["w2a8"] != pytest.approx(true, rel=0.05)


def test_roundoff_is_of_the_rounded_weights() -> None:
    found = session(sensitivity_on="rounded")
    site = found.network.sites[1].id
    weight = rounded_weight(
        found.network, found.fitted_for(found.choices), site, Candidate.parse("w3a8")
    )
    error = (weight.dequantize() - found.network.weight(site)).double().square().mean()
    assert found.sensitivity_by("roundoff").loss[site]["w3a8"] == pytest.approx(float(error))
    nearest = found.sensitivity_by("roundoff", "nearest").loss[site]["w3a8"]
    assert nearest < float(error)  # nothing is nearer in the mean square than the nearest codes


def test_an_interrupted_table_does_not_go_on_with_other_weights() -> None:
    found = session()
    slices = cut(found.batches, found.network, 32, 1.0, 1.0)
    keys = set()
    for weights in ("nearest", "rounded"):
        graph = QuantizedGraph(found.network, found.seen_for(found.choices, weights))
        keys.add(checkpoint.run_key("sqnr", graph, slices, found.choices))
    found.fitted_for(found.choices).weights.popitem()
    keys.add(checkpoint.run_key("sqnr", graph, slices, found.choices))
    assert len(keys) == 3


def test_a_plan_records_what_its_table_was_measured_on() -> None:
    x = images()
    torch.manual_seed(0)
    plans = [
        mpq.plan(
            Residual().eval(),
            x[:1],
            [x],
            target="bit_serial",
            budget=mpq.Budget(avg_bits=3.5),
            candidates=[*NAMES, "w8a8"],
            sensitivity_on=weights,
        )
        for weights in ("nearest", "rounded")
    ]
    assert [plan.provenance["sensitivity_on"] for plan in plans] == ["nearest", "rounded"]
    assert plans[0].loss != plans[1].loss
    old = {k: v for k, v in plans[1].provenance.items() if k != "sensitivity_on"}
    assert Recipe.of_plan(old).sensitivity_on == "nearest"
    assert Recipe.of_plan(plans[1].provenance).sensitivity_on == "rounded"


def test_unknown_weights() -> None:
    with pytest.raises(MpqError, match="'roundd'") as error:
        session(sensitivity_on="roundd")
    assert "rounded" in str(error.value)

"""Fits that belong to a site and a width alone: what they are, and what stands on them."""

from __future__ import annotations

import logging
from typing import Any

import operator_nets
import pytest
import torch
import torch.nn.functional as F
from site_nets import Residual, Setting, images, same, smooth
from torch import Tensor, nn

from mpq_compile.calibrate import read_batches
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.rounding import rounded_weight
from mpq_compile.quant.weights import weight_spec
from mpq_compile.recipe import Recipe
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.reconstruct.per_site import (
    gathered,
    groups_within,
    moment_bytes,
    reconstruct_per_site,
)
from mpq_compile.reconstruct.rounding import with_rounding
from mpq_compile.sensitivity.sqnr import noise_to_signal
from mpq_compile.session import Session
from mpq_compile.types import Candidate

NAMES = ("w2a8", "w3a8", "w4a8")


def test_a_fit_does_not_depend_on_what_else_is_chosen() -> None:
    setting = Setting()
    every = setting.everywhere(*NAMES)
    assert len(every.weights) == len(setting.sites) * len(NAMES)
    for site in setting.sites:
        alone = setting.fitted({site: "w3a4"})
        (key,) = alone.weights
        assert key == (site, weight_spec(Candidate.parse("w3a8")))
        assert same(alone, every, key)


def test_memory_does_not_change_a_fit() -> None:
    setting = Setting()
    choices = dict.fromkeys(setting.sites, NAMES)
    roomy, narrow = setting.fitted(choices), setting.fitted(choices, memory_mb=0.0)
    assert roomy.weights.keys() == narrow.weights.keys()
    assert all(same(roomy, narrow, key) for key in roomy.weights)


def test_what_is_there_is_left_as_it_is() -> None:
    setting = Setting()
    found = setting.everywhere("w3a8")
    before = dict(found.weights)
    reconstruct_per_site(setting.network, found, (), dict.fromkeys(setting.sites, "w3a8"))
    assert found.weights == before


ALONE = {
    "convolution": (nn.Conv2d(3, 6, 3, padding=1), images()),
    "grouped, without bias": (nn.Conv2d(4, 6, 3, 2, groups=2, bias=False), None),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2), images(32)),
    "tokens": (nn.Linear(10, 7), images(32)),
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("candidate", ["w2a16", "w4a16"])
def test_a_network_of_one_site_is_fitted_as_by_gptq(name: str, candidate: str) -> None:
    """Its input is the float network's where quantizing it changes nothing."""
    model, x = ALONE[name]
    x = torch.randn(64, 4, 9, 9) if x is None else x
    setting = Setting(model, x.bfloat16().float())
    (site,) = setting.sites
    one, two = (
        with_rounding(setting.network, setting.ranges, setting.batches, {site: candidate}, rounding)
        for rounding in ("gptq", "per_site")
    )
    (key,) = two.weights
    assert one.weights.keys() == two.weights.keys() and same(one, two, key)


def test_no_channel_of_a_site_ends_farther_from_float() -> None:
    """On float inputs, whose every position the moments hold here."""
    # Neighbouring inputs go together: what is nearest by itself is not nearest in what comes out.
    setting = Setting(nn.Conv2d(3, 12, 3, padding=1, bias=False), smooth(images()))
    (site,) = setting.sites
    found = setting.everywhere(*NAMES)
    x = torch.cat([batch.inputs[0] for batch in setting.batches])
    for name in NAMES:
        candidate = Candidate.parse(name)
        losses = []
        for calibration in (setting.ranges, found):
            weight = rounded_weight(setting.network, calibration, site, candidate).dequantize()
            error = F.conv2d(x, weight - setting.network.weight(site), padding=1)
            losses.append(error.square().mean((0, 2, 3)))
        assert bool((losses[1] <= losses[0] * (1 + 1e-3)).all())
        assert float(losses[1].sum()) < 0.8 * float(losses[0].sum())


def test_eight_bits_and_floats_keep_the_nearest_codes() -> None:
    setting = Setting()
    assert setting.everywhere("w8a8", "bf16", "fp32").weights == {}


def test_few_values_keep_the_nearest_codes_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting(x=images(FEWEST - 1))
    with caplog.at_level(logging.WARNING):
        found = setting.everywhere("w3a8")
    head, key = setting.sites[-1], weight_spec(Candidate.parse("w3a8"))
    assert found.weights[head, key] is setting.network.rounded(head, Candidate.parse("w3a8"))
    assert (head, key) not in found.fits and len(found.fits) == len(setting.sites) - 1
    assert f"{head} keeps its nearest codes" in caplog.text
    assert f"{FEWEST - 1} values of a channel, {FEWEST} are needed" in caplog.text


class Tied(nn.Module):
    """One convolution runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.own = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(F.relu(self.shared(F.relu(self.shared(x)))))


def test_sites_that_share_a_weight_keep_its_codes() -> None:
    found = Setting(Tied()).everywhere("w3a8")
    assert {site.partition(":")[0] for site, _ in found.weights} == {"own"}


class Overflowing(nn.Module):
    """Its second convolution is beyond float32 for inputs beyond 1e8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 1e30)


def test_an_overflow_is_named() -> None:
    setting = Setting(Overflowing())
    wild = read_batches([images() * 1e10], setting.network)
    with pytest.raises(CalibrationError, match="not finite") as error:
        reconstruct_per_site(
            setting.network, setting.ranges, wild, dict.fromkeys(setting.sites, "w3a8")
        )
    assert error.value.where is not None and "second" in error.value.where


def test_moments_are_counted_and_bound() -> None:
    setting = Setting()
    found = gathered(setting.network, setting.batches, setting.sites, {})
    sizes = {site.id: moment_bytes(setting.network, site) for site in setting.network.sites}
    for site, moments in found.items():
        held = (moments.squares, moments.crosses, moments.inputs, moments.targets)
        assert sizes[site] == sum(value.numel() * value.element_size() for value in held)
    starts: dict[str, Any] = dict.fromkeys(setting.sites, ())
    stem, one, two, depthwise, head = setting.sites
    pair_mb = (sizes[one] + sizes[two]) / 1e6
    groups = list(groups_within(setting.network, starts, pair_mb))
    assert groups == [[stem, one], [two, depthwise, head]]
    assert list(groups_within(setting.network, starts, 0.0)) == [[site] for site in setting.sites]
    assert list(groups_within(setting.network, {two: ()}, 1.0)) == [[two]]


@pytest.mark.parametrize("name", sorted(operator_nets.CASES))
def test_every_operator(name: str) -> None:
    """Each network that has a lowering can be fitted, and its oracle runs."""
    case = operator_nets.CASES[name]
    x = case.inputs(8)
    found = Session(
        case.model(),
        case.inputs(1),
        [x],
        target="bit_serial",
        recipe=Recipe(rounding="per_site"),
        allow_float=True,
    )
    outputs = found.reference({site.id: "w3a8" for site in found.network.sites})(*x)
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    assert all(bool(v.isfinite().all()) for v in tensors if isinstance(v, Tensor))


# What stands on them


def session(rounding: str, x: Tensor | None = None) -> Session:
    torch.manual_seed(0)
    x = images() if x is None else x
    return Session(
        Residual().eval(),
        x[:1],
        [x],
        target="bit_serial",
        candidates=[*NAMES, "w8a8"],
        recipe=Recipe(rounding=rounding),
    )


def noise(found: Session, assignment: dict[str, str], x: Tensor) -> float:
    """Return the noise-to-signal ratio of the oracle of an assignment."""
    with torch.no_grad():
        return noise_to_signal([found.reference(assignment)(x)], [found.float_graph()(x)])


@pytest.mark.parametrize("name", NAMES)
def test_unseen_inputs_come_out_nearer_to_float(name: str) -> None:
    """Inputs whose neighbours go together: of white noise, codes alone have little to tell."""
    unseen = smooth(images(200, seed=2))
    losses = {}
    for rounding in ("nearest", "per_site"):
        found = session(rounding=rounding, x=smooth(images()))
        losses[rounding] = noise(found, {s.id: name for s in found.network.sites}, unseen)
    assert losses["per_site"] < 0.8 * losses["nearest"]


def test_an_assignment_costs_no_fit_of_its_own(solved: list[str]) -> None:
    found = session(rounding="per_site")
    sites = [site.id for site in found.network.sites]
    found.fitted_for(found.choices)
    solved.clear()
    for name in NAMES:
        mixed = {**dict.fromkeys(sites, name), sites[1]: "w3a8"}
        weights = found.rounded_for(mixed).weights
        key = sites[1], weight_spec(Candidate.parse("w3a8"))
        assert weights[key] is found.fitted_for({}).weights[key]
    assert solved == []


def test_nearest_weights_are_left_alone() -> None:
    found = session(rounding="gptq")
    found.fitted_for(found.choices)
    assert found.calibration_for(found.choices).weights == {}

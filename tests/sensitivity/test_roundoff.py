"""Rounding error of weights against MixQuant's golden case and the reference quantizer."""

from __future__ import annotations

import pytest
import torch
from metric_nets import Chain, setting

from mpq_compile.quant.weights import quantize_weight, weight_spec
from mpq_compile.sensitivity.roundoff import RoundoffMetric, asymmetric, error, relative
from mpq_compile.types import Candidate

GOLDEN = torch.tensor([-1.0, 0.01, 1.0, 2.0])


def test_the_golden_case() -> None:
    codes, values = asymmetric(GOLDEN, 2)
    assert codes.tolist() == [-2, -1, 0, 1]
    assert values.tolist() == [-1, 0, 1, 2]
    assert error(GOLDEN, values, "mse") == pytest.approx(0.01**2 / 4)
    assert error(GOLDEN, values, "relative") == pytest.approx(1 / 4)


def test_constants_and_zeros_have_no_error() -> None:
    assert asymmetric(torch.full((3,), 2.5), 3)[1].tolist() == [2.5] * 3
    assert error(torch.zeros(4), torch.zeros(4), "relative") == 0.0


def test_squares_grow_fourfold_a_bit() -> None:
    """Why the paper's choices cannot come from the mean squared error: 4, 16, 66 at 7, 6, 5."""
    weight = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double()
    errors = {b: error(weight, asymmetric(weight, b)[1], "mse") for b in (8, 7, 6, 5)}
    ratios = [errors[b] / errors[8] for b in (7, 6, 5)]
    assert ratios == pytest.approx([4, 16, 66], rel=0.05)


def test_the_deployed_quantizer_is_measured() -> None:
    net = setting(Chain(), (torch.randn(8, 5),))
    site, weight = net.sites[1], net.network.weight(net.sites[1]).detach().double()
    rounded = quantize_weight(weight.float(), weight_spec(Candidate.parse("w3a8"))).dequantize()
    difference = weight - rounded.double()
    names = ("bf16", "w3a8", "w3a4")
    squares = net.measure(RoundoffMetric(), names).loss[site]
    ratios = net.measure(relative(), names).loss[site]
    assert squares["w3a8"] == squares["w3a4"] == pytest.approx(float(difference.square().mean()))
    assert ratios["w3a8"] == pytest.approx(float((difference / weight).abs().mean()))
    assert 0 < ratios["bf16"] < 2**-8


def test_mixquants_quantizer_is_an_option() -> None:
    net = setting(Chain(), (torch.randn(8, 5),))
    weight = net.network.weight(net.sites[0]).detach()
    found = net.measure(RoundoffMetric(quantizer="asymmetric"), ("w4a8",)).loss[net.sites[0]]
    expected = error(weight.double(), asymmetric(weight, 4)[1].double(), "mse")
    assert found["w4a8"] == pytest.approx(expected)

"""Branches side by side: exact at the corners, gradients by finite differences, what is tied."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from operator_nets import CASES
from search_nets import Setting, small
from torch import Tensor, nn

from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.errors import PlanError
from mpq_compile.passes.network import prepare
from mpq_compile.quant.observers import affine_qparams
from mpq_compile.quant.weights import quantize_weight, weight_spec
from mpq_compile.search.bits import Bits
from mpq_compile.search.branches import BranchedGraph
from mpq_compile.search.mixture import ActivationCodes, Exact, WeightCodes, mixture
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.types import Candidate

NAMES = ("w2a4", "w4a4", "w4a8", "w8a8", "w8a8d", "bf16", "fp32")
GRID = ("w2a4", "w2a8", "w8a4", "w8a8")


@cache
def net() -> Setting:
    return small()


def graph_of(found: Setting, names: tuple[str, ...] = GRID) -> BranchedGraph:
    return BranchedGraph(found.network, found.calibration, dict.fromkeys(found.sites, names))


def decide(bits: Bits, name: str) -> None:
    """Give a candidate's branches all probability."""
    candidate = bits.candidates[name]
    with torch.no_grad():
        bits.weight_logits.fill_(-1e4)
        bits.weight_logits[
            list(bits.weight_branches).index((candidate.weight_bits, candidate.group_size))
        ] = 1e4
        bits.input_logits.fill_(-1e4)
        bits.input_logits[
            list(bits.input_branches).index((candidate.activation_bits, candidate.dynamic))
        ] = 1e4


# Mixtures


def rounders():
    torch.manual_seed(1)
    weight = torch.randn(6, 5)
    specs = (weight_spec(Candidate.parse(name)) for name in ("w2a8", "w4a8"))
    return weight, [WeightCodes.like(quantize_weight(weight, spec)) for spec in specs]


def test_codes_are_those_of_the_weight_quantizer() -> None:
    torch.manual_seed(1)
    for name in ("w2a8", "w3a8", "w8a8", "w4a8g8"):
        weight = torch.randn(6, 16)
        expected = quantize_weight(weight, weight_spec(Candidate.parse(name)))
        assert torch.equal(WeightCodes.like(expected)(weight), expected.dequantize())


def test_a_mixture_is_the_weighted_sum() -> None:
    weight, (two, four) = rounders()
    shares = torch.tensor([0.25, 0.75])
    expected = 0.25 * two(weight) + 0.75 * four(weight)
    assert torch.allclose(mixture(weight, shares, [two, four]), expected)


def test_gradients_of_shares_match_finite_differences() -> None:
    weight, branches = rounders()
    x = weight.double()
    slope = torch.randn(6, 5, dtype=torch.float64)
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def value(logits: Tensor) -> Tensor:
        return (mixture(x, logits.softmax(0), branches) * slope).sin().sum()

    assert torch.autograd.gradcheck(value, (logits,), atol=1e-6)


def test_gradients_pass_straight_through_until_codes_saturate() -> None:
    codes = ActivationCodes(qparams=affine_qparams(-1.0, 1.0, 4))
    x = torch.tensor([-5.0, -0.5, 0.3, 0.9, 7.0], requires_grad=True)
    mixture(x, torch.tensor([0.75, 0.25]), [codes, Exact()]).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.25, 1.0, 1.0, 1.0, 0.25]


def test_straight_through_is_the_slope_over_many_steps() -> None:
    """Over distances of many codes the rounded line has the slope of the float one."""
    codes = ActivationCodes(qparams=affine_qparams(0.0, 1.0, 8))
    x = torch.linspace(0.2, 0.4, 64, dtype=torch.float64, requires_grad=True)
    shares = torch.ones(1, dtype=torch.float64)
    mixture(x, shares, [codes]).sum().backward()
    moved = mixture(x.detach() + 0.4, shares, [codes]) - mixture(x.detach(), shares, [codes])
    assert x.grad is not None
    assert float(moved.mean() / 0.4) == pytest.approx(float(x.grad.mean()), abs=0.01)


# Graphs


@pytest.mark.parametrize("name", NAMES)
def test_a_decided_graph_is_the_quantized_graph(name: str) -> None:
    found = net()
    graph = graph_of(found, NAMES)
    for bits in graph.bits.values():
        decide(bits, name)
    quantized = QuantizedGraph(found.network, found.calibration)
    quantized.assign(dict.fromkeys(found.sites, name))
    with torch.no_grad():
        assert torch.equal(graph.module(found.x)[0], quantized.module(found.x)[0])


@pytest.mark.parametrize("case", sorted(CASES))
def test_any_captured_network_trains(case: str) -> None:
    network = prepare(capture(CASES[case].model(), CASES[case].inputs(2, seed=1)))
    batches = read_batches([CASES[case].inputs(8, seed=1)], network)
    choices = {site.id: GRID for site in network.sites}
    graph = BranchedGraph(network, calibrate(network, batches), choices)
    outputs = [v for v in graph.module(*batches[0].inputs) if v.is_floating_point()]
    loss = sum(value.float().square().mean() for value in outputs)
    parameters = [*graph.weights.values(), *graph.logits.values()]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)
    assert any(g is not None and bool(g.any()) for g in gradients)


def test_logit_gradients_of_a_network_match_finite_differences() -> None:
    found = net()
    graph = graph_of(found)
    graph.module.double()
    x = found.x[:8].double()

    def loss() -> Tensor:
        return graph.module(x)[0].sin().sum()

    # Behind other sites inputs are rounded again, and the steps of codes have no slope.
    last = graph.bits[found.network.sites[-1].group]
    for logits in (last.weight_logits, last.input_logits):
        (slope,) = torch.autograd.grad(loss(), [logits])
        for i in range(len(logits)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    logits[i] += sign * 1e-4
                    values.append(float(loss()))
                    logits[i] -= sign * 1e-4
            assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(slope[i]), rel=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    found = net()
    before = {n: v.clone() for n, v in found.network.constants().items() if v is not None}
    graph = graph_of(found)
    with torch.no_grad():
        for weight in graph.weights.values():
            weight.mul_(2)
    after = found.network.constants()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # type: ignore[arg-type]


def test_scales_follow_the_weights_when_they_are_fitted_again() -> None:
    found = net()
    graph = graph_of(found, ("w4a8",))
    with torch.no_grad():
        for name, value in graph.weights.items():
            if "weight" in name:
                value.mul_(2)
    mixed = graph.module.get_submodule("branches_0.weight")
    before = mixed.rounders[0].scale
    graph.refit()
    assert torch.allclose(mixed.rounders[0].scale, 2 * before)


def test_complexity_is_in_units_of_the_first_layer() -> None:
    found = net()
    graph = graph_of(found, ("w4a8", "w2a8"))
    for bits in graph.bits.values():
        decide(bits, "w4a8")
    macs = [site.macs for site in found.network.sites]
    assert graph.complexity().item() == pytest.approx(sum(macs) / macs[0] * 32)
    for bits in graph.bits.values():
        nn.init.zeros_(bits.weight_logits)
    assert graph.complexity().item() == pytest.approx(sum(macs) / macs[0] * 24)


def test_sites_that_share_a_weight_share_their_bits() -> None:
    case = CASES["tied"]
    network = prepare(capture(case.model(), case.inputs(2, seed=1)))
    batches = read_batches([case.inputs(8, seed=1)], network)
    calibration = calibrate(network, batches)
    groups = {site.group for site in network.sites}
    assert len(groups) < len(network.sites)
    graph = BranchedGraph(network, calibration, {site.id: GRID for site in network.sites})
    assert set(graph.bits) == groups
    assert len(graph.logits) == 2 * len(groups)
    tied = [s.id for s in network.sites if s.group == network.sites[0].group]
    choices = {site.id: ["w8a8"] for site in network.sites} | {tied[-1]: ["w4a8"]}
    if len(tied) > 1:
        with pytest.raises(PlanError, match="no candidate in common"):
            BranchedGraph(network, calibration, choices)


def test_scores_are_log_probabilities_of_pairs() -> None:
    bits = Bits(GRID)
    with torch.no_grad():
        bits.weight_logits.copy_(torch.tensor([1.0, 3.0]))
        bits.input_logits.copy_(torch.tensor([0.0, -1.0]))
    scores = bits.scores()
    assert max(scores, key=scores.__getitem__) == "w8a4"
    assert sum(torch.tensor(list(scores.values())).exp()) == pytest.approx(1.0)

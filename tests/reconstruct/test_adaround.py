"""AdaRound: against all up and down roundings of small layers, and in a network."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import QuantizedWeight, quantize_weight
from mpq_compile.reconstruct.adaround import Layer, reconstruct_adaround, search_codes
from mpq_compile.reconstruct.soft_rounding import Annealing, SoftRounding
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.types import Candidate, QSpec

FEW = Annealing(steps=300, rate=3e-2)


def problem(
    seed: int, rows: int = 2, width: int = 6, groups: int = 1, relu: bool = True
) -> tuple[Layer, Tensor, QuantizedWeight]:
    """Return a layer of correlated inputs, its float weight and its nearest codes at 3 bits."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(width) + 0.3 * torch.randn(groups, width, width, generator=generator)
    x = mix @ torch.randn(groups, width, 512, generator=generator) + 0.5
    weight = torch.randn(groups * rows, width, generator=generator)
    exact = weight.unflatten(0, (groups, -1)) @ x
    bounds = (0.0, float("inf")) if relu else (-float("inf"), float("inf"))
    layer = Layer(inputs=x, exact=exact, added=torch.zeros(groups, rows, 1), bounds=bounds)
    return layer, weight, quantize_weight(weight, spec())


def spec(bits: int = 3) -> QSpec:
    return QSpec(bits=bits, signed=True, symmetric=True, axis=0)


def losses(layer: Layer, weight: QuantizedWeight) -> Tensor:
    return layer.loss(layer.products(weight.dequantize()))


def least_losses(layer: Layer, weight: Tensor, nearest: QuantizedWeight) -> Tensor:
    """Return the least loss of each row over all its up and down roundings."""
    lower = (weight / nearest.scale[:, None]).floor().clamp(nearest.spec.qmin, nearest.spec.qmax)
    found = []
    for ups in itertools.product((0, 1), repeat=weight.shape[1]):
        codes = (lower + torch.tensor(ups)).clamp(nearest.spec.qmin, nearest.spec.qmax)
        found.append(losses(layer, QuantizedWeight(codes=codes, scale=nearest.scale, spec=spec())))
    return torch.stack(found).amin(0)


@pytest.mark.parametrize("relu", [False, True])
def test_most_rows_reach_the_best_of_all_roundings(relu: bool) -> None:
    reached = total = 0
    for seed in range(5):
        layer, weight, nearest = problem(seed, rows=4, relu=relu)
        found = losses(layer, search_codes(layer, weight, nearest, FEW))
        best = least_losses(layer, weight, nearest)
        assert (found >= best * (1 - 1e-4)).all()
        assert (found <= losses(layer, nearest)).all()
        reached += int((found <= best * 1.001).sum())
        total += len(best)
    assert reached >= 0.6 * total


def test_groups_are_searched_each_on_its_own() -> None:
    layer, weight, nearest = problem(1, rows=1, groups=4)
    found = losses(layer, search_codes(layer, weight, nearest, FEW))
    assert (found <= least_losses(layer, weight, nearest) * 1.5).all()
    assert found.sum() < losses(layer, nearest).sum()


@pytest.mark.parametrize("bits", [2, 4])
def test_it_starts_from_the_float_weight(bits: int) -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    nearest = quantize_weight(weight, spec(bits))
    soft = SoftRounding(weight, nearest)
    low, high = nearest.spec.qmin * nearest.scale, nearest.spec.qmax * nearest.scale
    inside = weight.clamp(low[:, None], high[:, None])
    # At the codes themselves the start keeps a little away.
    assert torch.allclose(soft(), inside, atol=0.011 * float(nearest.scale.max()))
    assert torch.equal(soft.hardened().codes, nearest.codes)
    assert torch.equal(soft.hardened().scale, nearest.scale)


def test_the_penalty_is_zero_at_codes_and_one_between() -> None:
    weight = torch.zeros(1, 3)
    nearest = QuantizedWeight(codes=torch.zeros(1, 3), scale=torch.ones(1), spec=spec())
    soft = SoftRounding(weight, nearest)
    with torch.no_grad():
        soft.choice.copy_(torch.tensor([[-9.0, 9.0, 0.0]]))
    assert torch.allclose(soft.share(), torch.tensor([[0.0, 1.0, 0.5]]))
    assert float(soft.penalty(2.0).detach()) == pytest.approx(1 / 3)


def test_groups_of_inputs_have_scales_of_their_own() -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    grouped = QSpec(bits=3, signed=True, symmetric=True, axis=0, group_size=4)
    nearest = quantize_weight(weight, grouped)
    hard = SoftRounding(weight, nearest).hardened()
    assert torch.equal(hard.dequantize(), nearest.dequantize())


# In a network


class Small(nn.Module):
    """A convolution, a depthwise one with a skip, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.point(F.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


def inputs(count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def prepared(x: Tensor) -> tuple[Network, Calibration, tuple[Batch, ...], dict[str, str]]:
    """Return a network, its calibration and data, and a uniform assignment."""
    torch.manual_seed(0)
    network = prepare(capture(Small().eval(), x[:1]))
    batches = read_batches([x], network)
    assignment = {site.id: "w3a8" for site in network.sites}
    return network, calibrate(network, batches), batches, assignment


def noise(network: Network, calibration: Calibration, assignment: dict[str, str]) -> float:
    """Return the noise-to-signal ratio of the quantized network on new inputs."""
    graph, x = QuantizedGraph(network, calibration), inputs(200, seed=2)
    with torch.no_grad():
        exact = graph.module(x)[0]
        graph.assign(assignment)
        return float((graph.module(x)[0] - exact).square().sum() / exact.square().sum())


def test_unseen_inputs_come_out_nearer_to_float() -> None:
    network, calibration, batches, assignment = prepared(inputs())
    before = noise(network, calibration, assignment)
    reconstruct_adaround(network, calibration, batches, assignment, FEW)
    assert noise(network, calibration, assignment) < 0.8 * before
    for (site, _), weight in calibration.weights.items():
        nearest = network.rounded(site, Candidate.parse("w3a8"))
        assert (weight.codes.int() - nearest.codes.int()).abs().max() <= 1


def test_the_same_twice() -> None:
    found = []
    for _ in range(2):
        network, calibration, batches, assignment = prepared(inputs())
        reconstruct_adaround(network, calibration, batches, assignment, FEW)
        found.append(calibration.weights)
    first, second = found
    assert first.keys() == second.keys() and len(first) == 4
    assert all(torch.equal(w.codes, second[key].codes) for key, w in first.items())
    assert all(torch.equal(w.scale, second[key].scale) for key, w in first.items())


def test_too_few_samples() -> None:
    network, calibration, batches, assignment = prepared(inputs(31))
    with pytest.raises(CalibrationError, match="too few calibration samples") as error:
        reconstruct_adaround(network, calibration, batches, assignment)
    assert error.value.found == "31" and "32" in str(error.value.expected)


def test_an_overflow_is_named() -> None:
    network, calibration, _, assignment = prepared(inputs())
    with torch.no_grad():
        network.weight(network.sites[0].id).mul_(1e5)
    wild = read_batches([inputs() * 1e35], network)
    with pytest.raises(CalibrationError, match="not finite") as error:
        reconstruct_adaround(network, calibration, wild, assignment)
    assert error.value.where is not None and "stem" in error.value.where


def test_what_runs_is_what_was_rounded() -> None:
    torch.manual_seed(0)
    x = inputs()
    network = mpq.assign(Small().eval(), x[:1], [x], "w4a8", rounding="adaround")
    assert network.plan.provenance["rounding"] == "adaround"
    assert torch.equal(network(x), network.reference(x))

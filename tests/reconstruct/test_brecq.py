"""Block reconstruction: what it is judged by, what it keeps, what runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import operator_nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.passes.insert_quantizers import ActivationQuantizer
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.calibration import Calibration
from mpq_compile.recipe import Recipe
from mpq_compile.reconstruct.block_runner import BlockRunner, GivenSite
from mpq_compile.reconstruct.block_search import BlockSearch, LearnedSite, learn
from mpq_compile.reconstruct.blocks import block_units
from mpq_compile.reconstruct.brecq import reconstruct_brecq, reconstruct_qdrop
from mpq_compile.reconstruct.gptq import reconstruct_gptq
from mpq_compile.reconstruct.lockstep import Lockstep, Unit
from mpq_compile.reconstruct.rounded_site import RoundedSite
from mpq_compile.reconstruct.soft_rounding import Annealing
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.session import Session
from mpq_compile.types import Budget, Candidate

FEW = BlockSearch(annealing=Annealing(steps=20, rate=2e-2))


class Residual(nn.Module):
    """A stem, a residual block with a depthwise convolution, a head."""

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


def inputs(count: int = 128, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def prepared(x: Tensor | None = None, name: str = "w3a8") -> tuple[Network, Calibration, Any, Any]:
    """Return a network, its calibration and data, and a uniform assignment."""
    torch.manual_seed(0)
    x = inputs() if x is None else x
    network = prepare(capture(Residual().eval(), x[:1]))
    batches = read_batches([x], network)
    assignment = {site.id: name for site in network.sites}
    return network, calibrate(network, batches), batches, assignment


def noise(network: Network, calibration: Calibration, assignment: dict[str, str]) -> float:
    """Return the noise-to-signal ratio of the quantized network on new inputs."""
    graph, x = QuantizedGraph(network, calibration), inputs(200, seed=2)
    with torch.no_grad():
        exact = graph.module(x)[0]
        graph.assign(assignment)
        return float((graph.module(x)[0] - exact).square().sum() / exact.square().sum())


@pytest.mark.parametrize("search", [reconstruct_brecq, reconstruct_qdrop])
def test_unseen_inputs_come_out_nearer_to_float(search: Any) -> None:
    network, calibration, batches, assignment = prepared()
    before = noise(network, calibration, assignment)
    search(network, calibration, batches, assignment, FEW)
    assert len(calibration.weights) == len(network.sites)
    assert noise(network, calibration, assignment) < 0.6 * before


def test_a_block_that_gets_worse_keeps_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    network, calibration, batches, assignment = prepared()
    wild = BlockSearch(annealing=Annealing(steps=3, rate=100.0), channel_rate=10.0)
    with caplog.at_level(logging.WARNING):
        reconstruct_brecq(network, calibration, batches, assignment, wild)
    assert "3 of 3 blocks keep what gptq found" in caplog.text
    _, expected, _, _ = prepared()
    reconstruct_gptq(network, expected, batches, assignment)
    for key, weight in expected.weights.items():
        assert torch.equal(weight.codes, calibration.weights[key].codes)


def learned_scales(seed: int) -> list[Tensor]:
    """Return the scales of all sites that are learned in the order of blocks, at 2 bits."""
    network, calibration, batches, assignment = prepared(name="w2a8")
    how = BlockSearch(annealing=Annealing(steps=20, rate=2e-2, seed=seed), drop=0.5)
    graph = QuantizedGraph(network, calibration)
    graph.assign(assignment)
    lockstep, found = Lockstep(graph, batches), []

    def visit(block: Unit) -> None:
        candidate = Candidate.parse("w2a8")
        sites = {s: LearnedSite.from_float(network, s, candidate) for s in block.sites}
        runner = BlockRunner(lockstep=lockstep, block=block, sites={}, fisher=torch.ones(()))
        if sites:
            learned = learn(runner, sites, range(len(batches)), how)
            found.extend(rounded.weight.scale for rounded in learned.values())

    lockstep.run(block_units(graph), visit)
    return found


def test_the_same_twice_and_another_under_another_seed() -> None:
    one, two, other = (learned_scales(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_too_few_samples() -> None:
    network, calibration, batches, assignment = prepared(inputs(31))
    with pytest.raises(CalibrationError, match="too few calibration samples") as error:
        reconstruct_brecq(network, calibration, batches, assignment)
    assert error.value.found == "31" and "32" in str(error.value.expected)


def test_an_overflow_is_named() -> None:
    network, calibration, _, assignment = prepared(inputs())
    with torch.no_grad():
        network.weight(network.sites[0].id).mul_(1e5)
    wild = read_batches([inputs() * 1e35], network)
    with pytest.raises(CalibrationError, match="not finite") as error:
        reconstruct_brecq(network, calibration, wild, assignment)
    assert error.value.where is not None and "stem" in error.value.where


@pytest.mark.parametrize("name", sorted(operator_nets.CASES))
def test_every_operator(name: str) -> None:
    """Each network that has a lowering is searched, and stays finite."""
    case = operator_nets.CASES[name]
    x = case.inputs(32)
    network = prepare(capture(case.model(), case.inputs(1)))
    batches = read_batches([x], network)
    calibration = calibrate(network, batches)
    assignment = {site.id: "w3a8" for site in network.sites}
    few = BlockSearch(annealing=Annealing(steps=2), drop=0.5)
    reconstruct_brecq(network, calibration, batches, assignment, few)
    graph = QuantizedGraph(network, calibration)
    graph.assign(assignment)
    with torch.no_grad():
        assert all(bool(v.isfinite().all()) for v in graph.module(*x))


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_numbers_of_rows_are_no_codes(drop: float) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (32, 6))
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    network = prepare(capture(model.eval(), ids[:1]))
    batches = read_batches([ids], network)
    calibration = calibrate(network, batches)
    assignment = {site.id: "w4a8" for site in network.sites}
    few = BlockSearch(annealing=Annealing(steps=2), drop=drop)
    reconstruct_brecq(network, calibration, batches, assignment, few)
    assert {site.op for site in network.sites} == {"embedding", "linear"}


@pytest.mark.parametrize("rounding", ["brecq", "qdrop", "nearest"])
def test_what_runs_is_what_was_rounded(rounding: str) -> None:
    torch.manual_seed(0)
    x = inputs()
    network = mpq.assign(Residual().eval(), x[:1], [x], "w4a8", rounding=rounding)
    assert network.plan.provenance["rounding"] == rounding
    assert torch.equal(network(x), network.reference(x))


@pytest.mark.parametrize("rounding", ["brecq", "nearest"])
def test_mixquant_chooses_bits_that_are_then_rounded(rounding: str) -> None:
    torch.manual_seed(0)
    x = inputs()
    session = Session(
        Residual().eval(),
        x[:1],
        [x],
        target="bit_serial",
        candidates=["w3a8", "w4a8", "w8a8"],
        metric="roundoff_relative",
        solver="mixquant",
        recipe=Recipe(rounding=rounding),
    )
    plan = session.solve(Budget(avg_bits=5.0))
    assert plan.solver == "mixquant" and plan.predicted.avg_bits <= 5.0
    searched = {site for site, _ in session.rounded_for(plan.assignment).weights}
    assert searched == (set(plan.assignment) if rounding == "brecq" else set())
    assert session.reference(plan.assignment)(x).isfinite().all()


# What a block is judged by


def at_block(drop: float = 0.0) -> tuple[BlockRunner, Network, Calibration]:
    """Return the runner of the residual block, where both networks have reached it."""
    network, calibration, batches, assignment = prepared()
    graph = QuantizedGraph(network, calibration)
    graph.assign(assignment)
    lockstep = Lockstep(graph, batches)
    found: list[BlockRunner] = []

    class Reached(Exception):
        pass

    def visit(block: Unit) -> None:
        if len(block.sites) == 2:
            generator = torch.Generator().manual_seed(0)
            one = torch.ones(())
            found.append(
                BlockRunner(
                    lockstep=lockstep,
                    block=block,
                    sites={},
                    fisher=one,
                    drop=drop,
                    generator=generator,
                )
            )
            raise Reached

    with pytest.raises(Reached):
        lockstep.run(block_units(graph), visit)
    return found[0], network, calibration


def test_a_runner_gives_what_the_quantized_network_gives() -> None:
    runner, network, calibration = at_block()
    graph, x = runner.lockstep.graph, inputs()[:32]
    values = graph.float_values(read_batches([x], network)[0])
    graph.assign({site.id: "w3a8" for site in network.sites})
    recorder = ValueRecorder(graph.module, lambda _, value: value)
    with torch.no_grad():
        recorder.run(x)
        exit = runner.block.exit.name
        assert torch.equal(runner(0), recorder.kept[exit])
        expected = (recorder.kept[exit] - values[exit]).square().mean()
    assert float(runner.loss(0)) == pytest.approx(float(expected))


def test_given_sites_replace_what_the_calibration_has() -> None:
    runner, network, calibration = at_block()
    candidate = Candidate.parse("w3a8")
    same = {
        site: GivenSite.of(network, site, RoundedSite.of(network, calibration, site, candidate))
        for site in runner.block.sites
    }
    assert torch.equal(replace(runner, sites=same)(0), runner(0))
    exact = {
        site: GivenSite(value=network.weight(site), bias=network.bias(site))
        for site in runner.block.sites
    }
    assert float(replace(runner, sites=exact).loss(0)) < float(runner.loss(0))


def test_everything_dropped_is_the_float_block() -> None:
    runner, network, _ = at_block(drop=1.0)
    exact = {
        site: GivenSite(value=network.weight(site), bias=network.bias(site))
        for site in runner.block.sites
    }
    assert float(replace(runner, sites=exact).loss(0)) == pytest.approx(0.0, abs=1e-10)


def test_the_gradient_of_a_loss_is_that_of_finite_differences() -> None:
    """Of a bias after the last quantizer, where no rounding lies between."""
    runner, network, _ = at_block()
    site = runner.block.sites[-1]
    bias = network.bias(site).requires_grad_()

    def loss(value: Tensor) -> Tensor:
        given = GivenSite(value=network.weight(site), bias=value)
        return replace(runner, sites={site: given}).loss(0)

    (slope,) = torch.autograd.grad(loss(bias), bias)
    step = torch.zeros_like(slope)
    step[2] = 1e-2
    with torch.no_grad():
        difference = (loss(bias + step) - loss(bias - step)) / 2e-2
    assert float(difference) == pytest.approx(float(slope[2]), rel=0.02)


def test_rounding_passes_gradients_on_where_it_does_not_clip() -> None:
    network, calibration, _, assignment = prepared()
    graph = QuantizedGraph(network, calibration)
    graph.assign(assignment)
    quantizer = next(m for m in graph.module.modules() if isinstance(m, ActivationQuantizer))
    x = torch.linspace(-50, 50, 41).requires_grad_()
    y = quantizer.straight_through(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(y, quantizer(x.detach()), atol=1e-6)
    assert slope[0] == slope[-1] == 0 and slope[20] == 1


@pytest.mark.parametrize("start", ["float", "codes"])
def test_gains_and_biases_go_into_scale_and_shift(start: str) -> None:
    network, _, _, _ = prepared()
    site, candidate = network.sites[0].id, Candidate.parse("w4a8")
    nearest = network.rounded(site, candidate)
    learned = LearnedSite.from_float(network, site, candidate)
    assert torch.allclose(learned.weight(), network.weight(site), atol=float(nearest.scale.max()))
    if start == "codes":
        rounded = RoundedSite(weight=nearest, shift=torch.zeros(8))
        learned = LearnedSite.from_codes(network, site, rounded)
        assert torch.equal(learned.weight(), nearest.dequantize())
    with torch.no_grad():
        learned.gain += 0.1
        assert learned.bias is not None
        learned.bias += 0.5
    found = learned.rounded()
    assert torch.allclose(found.weight.scale, nearest.scale * torch.tensor(0.1).exp())
    assert torch.allclose(found.shift, torch.full_like(found.shift, 0.5))
    # The scale puts the widest weight between two codes: either is the nearest.
    real = network.weight(site) / nearest.scale.reshape(-1, 1, 1, 1)
    off = (found.weight.codes - real.clamp(-8, 7)).abs()
    assert off.max() <= 0.5 + 1e-4

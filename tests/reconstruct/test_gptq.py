"""Roundings by integer least squares: what they are fitted to, what is left alone, what runs."""

from __future__ import annotations

from typing import Any

import operator_nets
import pytest
import shared_nets
import torch
import torch.nn.functional as F
from site_nets import Residual
from site_nets import images as inputs
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.errors import CalibrationError, MpqError
from mpq_compile.passes import ops
from mpq_compile.passes.base import ValueRecorder, is_call
from mpq_compile.passes.network import prepare
from mpq_compile.passes.rounding import fitted_weight
from mpq_compile.recipe import Recipe
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.reconstruct.lockstep import Lockstep, Unit, affordable, site_units
from mpq_compile.reconstruct.moments import Reader
from mpq_compile.reconstruct.rounding import with_rounding
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.session import Session
from mpq_compile.types import Candidate


def session(rounding: str = "gptq", model: nn.Module | None = None, **more: Any) -> Session:
    torch.manual_seed(0)
    x = more.pop("x", inputs())
    return Session(
        (model or Residual()).eval(),
        x[:1],
        [x],
        target="bit_serial",
        recipe=Recipe(rounding=rounding),
        **more,
    )


def uniform(found: Session, name: str) -> dict[str, str]:
    return {site.id: name for site in found.network.sites}


def noise(found: Session, name: str, x: Tensor) -> float:
    """Return the noise-to-signal ratio of the oracle of a uniform assignment."""
    exact = found.float_graph()(x)
    return float(
        (found.reference(uniform(found, name))(x) - exact).square().sum() / exact.square().sum()
    )


@pytest.mark.parametrize("name", ["w2a8", "w3a8", "w4a8"])
def test_unseen_inputs_come_out_nearer_to_float(name: str) -> None:
    unseen = inputs(200, seed=2)
    assert noise(session(), name, unseen) < 0.6 * noise(session("nearest"), name, unseen)


def test_the_same_twice() -> None:
    one, two = session(), session()
    assignment = uniform(one, "w3a8")
    first, second = one.rounded_for(assignment), two.rounded_for(assignment)
    assert first.weights.keys() == second.weights.keys()
    assert len(first.weights) == len(one.network.sites)
    for key, weight in first.weights.items():
        assert torch.equal(weight.codes, second.weights[key].codes)
        assert torch.equal(weight.scale, second.weights[key].scale)


def test_eight_bits_and_floats_keep_the_nearest_codes() -> None:
    found = session()
    for name in ("w8a8", "fp32"):
        assert found.rounded_for(uniform(found, name)).weights == {}
    mixed = {**uniform(found, "fp32"), found.network.sites[1].id: "w4a8"}
    assert [site for site, _ in found.rounded_for(mixed).weights] == [found.network.sites[1].id]


def test_what_the_tables_see_is_left_alone() -> None:
    found = session()
    found.rounded_for(uniform(found, "w3a8"))
    assert found.calibration_for(uniform(found, "w3a8")).weights == {}


def test_few_values_keep_the_nearest_codes() -> None:
    few = inputs(FEWEST - 1)
    found = session(x=few)
    head = found.network.sites[-1]
    rounded = {site for site, _ in found.rounded_for(uniform(found, "w3a8")).weights}
    assert rounded == {site.id for site in found.network.sites} - {head.id}


def test_sites_that_share_a_weight_share_its_codes() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.shared = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.own(x))
            return self.shared(F.relu(self.shared(x)))

    torch.manual_seed(0)
    model = Tied()
    found = session(model=model)
    calibration = found.rounded_for(uniform(found, "w3a8"))
    _, first, second = found.network.sites
    one, two = (
        fitted_weight(found.network, calibration, site.id, Candidate.parse("w3a8"))
        for site in (first, second)
    )
    assert torch.equal(one.codes, two.codes) and torch.equal(one.scale, two.scale)
    nearest = found.network.rounded(first.id, Candidate.parse("w3a8"))
    assert not torch.equal(one.codes, nearest.codes)
    unseen = inputs(200, seed=2)
    before = noise(session("nearest", model), "w3a8", unseen)
    assert noise(found, "w3a8", unseen) < 0.8 * before


@pytest.mark.parametrize("name", ["w2a8", "w4a8"])
def test_steps_of_a_recurrent_layer_come_nearer_to_float(name: str) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 24, batch_first=True), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    def sequences(samples: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(samples, 7, 6, generator=generator).cumsum(1)

    torch.manual_seed(0)
    model, x, unseen = Last(), sequences(96, 0), sequences(200, 1)
    before = noise(session("nearest", model, x=x), name, unseen)
    assert noise(session(model=model, x=x), name, unseen) < 0.5 * before


class Overflowing(nn.Module):
    """Its second convolution is beyond float32 for inputs beyond 1e8."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * 1e30)


def test_an_overflow_is_named() -> None:
    torch.manual_seed(0)
    model = Overflowing().eval()
    network = prepare(capture(model, inputs(1) * 1e10))
    wild = read_batches([inputs() * 1e10], network)
    with pytest.raises(CalibrationError, match="not finite") as error:
        calibrate(network, wild)
    assert error.value.where is not None and "second" in error.value.where
    calibration = calibrate(network, read_batches([inputs()], network))
    assignment = {site.id: "w3a8" for site in network.sites}
    with pytest.raises(CalibrationError, match="not finite") as error:
        with_rounding(network, calibration, wild, assignment, "gptq")
    assert error.value.where is not None and "second" in error.value.where


def test_an_unknown_rounding() -> None:
    with pytest.raises(MpqError, match="unknown rounding 'gtpq'"):
        session("gtpq")


@pytest.mark.parametrize("name", sorted(operator_nets.CASES))
def test_every_operator(name: str) -> None:
    """Each network that has a lowering can be rounded, and its oracle runs."""
    case = operator_nets.CASES[name]
    x = case.inputs(8)
    found = Session(case.model(), case.inputs(1), [x], target="bit_serial", allow_float=True)
    assignment = uniform(found, "w3a8")
    outputs = found.reference(assignment)(*x)
    tensors = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    assert all(bool(v.isfinite().all()) for v in tensors if isinstance(v, Tensor))


def test_what_runs_is_what_was_rounded() -> None:
    torch.manual_seed(0)
    x = inputs()
    network = mpq.assign(Residual().eval(), x[:1], [x], "w4a8")
    assert network.plan.provenance["rounding"] == "gptq"
    assert torch.equal(network(x), network.reference(x))
    plain = mpq.assign(Residual().eval(), x[:1], [x], "w4a8", rounding="nearest")
    assert plain.plan.provenance["rounding"] == "nearest"
    assert network.size_bytes == plain.size_bytes


@pytest.mark.skipif(not shared_nets.data_folder().exists(), reason="no pretrained networks")
def test_a_pretrained_network_at_three_bits() -> None:
    net = shared_nets.load_net("resnet20", 500)
    right = {}
    for rounding in ("nearest", "gptq"):
        found = Session(
            net.model,
            net.example,
            [net.calibration],
            target="bit_serial",
            recipe=Recipe(rounding=rounding),
        )
        scores = found.reference(uniform(found, "w3a8"))(net.images)
        right[rounding] = float(shared_nets.top1(scores, net.labels).float().mean())
    assert right["gptq"] > 0.885
    assert right["gptq"] > right["nearest"] + 0.01


# What the fits are made of


def graph_of(model: nn.Module, x: Tensor, name: str = "w3a8") -> tuple[QuantizedGraph, Any]:
    network = prepare(capture(model.eval(), x[:1]))
    batches = read_batches([x], network)
    graph = QuantizedGraph(network, calibrate(network, batches))
    graph.assign({site.id: name for site in network.sites})
    return graph, batches


def test_both_networks_advance_together() -> None:
    """Where a site is visited, the float values reach it and the quantized ones its inputs."""
    torch.manual_seed(0)
    graph, batches = graph_of(Residual(), inputs())
    assignment = {site.id: "w3a8" for site in graph.network.sites}
    exact = [graph.float_values(batch) for batch in batches]
    graph.assign(assignment)
    rounded = []
    for batch in batches:
        recorder = ValueRecorder(graph.module, lambda _, value: value)
        with torch.no_grad():
            recorder.run(*batch.inputs)
        rounded.append(recorder.kept)
    seen = []
    lockstep = Lockstep(graph, batches)

    def visit(unit: Unit) -> None:
        for node in unit.nodes:
            if not is_call(node, *ops.SITE_OPS):
                continue
            seen.append(graph.network.site_of[node.name].id)
            source = node.args[0].args[0]
            for i in range(len(batches)):
                assert torch.equal(lockstep.exact[node][i], exact[i][node.name])
                assert torch.equal(lockstep.rounded[source][i], rounded[i][source.name])

    units = site_units(graph)
    assert [node for unit in units for node in unit.nodes] and len(
        {node for unit in units for node in unit.nodes}
    ) == len(graph.module.graph.nodes)
    lockstep.run(units, visit)
    assert seen == [site.id for site in graph.network.sites]
    assert len(lockstep.exact) <= 2


GEOMETRIES = {
    "same": nn.Conv2d(4, 6, 3, padding=1),
    "strided, dilated, grouped": nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 3), dilation=2, groups=2),
    "depthwise": nn.Conv2d(4, 8, 5, padding=2, groups=4),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
    "even, padded on one side": nn.Conv2d(4, 5, 2, padding="same"),
    "tokens": nn.Linear(7, 5),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_reader_reads_what_the_site_multiplies(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 9, 7)
    graph, _ = graph_of(GEOMETRIES[name], x)
    node = next(n for n in graph.module.graph.nodes if is_call(n, *ops.SITE_OPS))
    site = graph.network.sites[0].id
    reader = Reader(node=node, weight=graph.network.weight(site))
    graph.assign({})
    y = graph.module(x)[0].detach()
    _, count = reader.count(y.shape)
    positions = torch.randperm(count)[:11]
    bias = graph.network.bias(site).reshape(reader.groups, -1, 1)
    found = reader.rows @ reader.inputs(x, y.shape, positions) + bias
    assert torch.allclose(found, reader.outputs(y, positions), atol=1e-5)


def test_memory_bounds_the_samples() -> None:
    torch.manual_seed(0)
    graph, batches = graph_of(Residual(), inputs(96))
    # Of a sample: the skip, and a convolution's input and output, in both networks.
    sample_mb = 2 * 3 * 4 * 12 * 10 * 10 / 1e6
    kept = affordable(graph.network, batches, 33 * sample_mb)
    assert sum(len(batch.inputs[0]) for batch in kept) == 64
    assert len(affordable(graph.network, batches, 0.0)) == 1
    assert affordable(graph.network, batches, 1e6) == batches

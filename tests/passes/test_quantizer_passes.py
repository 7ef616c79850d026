"""Switchable quantizers, formats between sites, and the integer graph."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from graphs import after, assert_same, calibrated, calls, decibels
from operator_nets import CASES
from torch import Tensor, nn

from mpq_compile.errors import LoweringError, PlanError, UnsupportedOpError
from mpq_compile.passes.base import run_passes
from mpq_compile.passes.formats import quantizer_roots, stored_formats
from mpq_compile.passes.insert_quantizers import InsertQuantizers, set_assignment
from mpq_compile.passes.kinds import kinds
from mpq_compile.passes.materialize import materialize
from mpq_compile.passes.materialize_site import MAX_INPUTS
from mpq_compile.passes.materialized import Materialized
from mpq_compile.passes.network import Network
from mpq_compile.quant import ops as qops
from mpq_compile.quant.calibration import Calibration
from mpq_compile.types import Candidate

FAMILIES = ("w8a8", "w4a8", "w8a4", "bf16", "fp32")


def uniform(network: Network, name: str) -> dict[str, str]:
    return {site.id: name for site in network.sites}


@cache
def case_of(name: str) -> tuple[nn.Module, Network, Calibration, tuple[Tensor, ...]]:
    case = CASES[name]
    model = case.model()
    network, calibration = calibrated(model, *case.inputs(24, seed=1))
    return model, network, calibration, case.inputs(6, seed=2)


def quantizers(name: str):
    model, network, calibration, inputs = case_of(name)
    step = InsertQuantizers(network=network, calibration=calibration)
    return network, run_passes(network.module, [step]), inputs


# Insertion


@pytest.mark.parametrize("name", ["mobile", "linears", "tied", "concats"])
def test_quantizers_that_are_off_change_nothing(name: str) -> None:
    network, module, inputs = quantizers(name)
    set_assignment(module, network, {})
    for found, exact in zip(module(*inputs), network.module(*inputs), strict=True):
        assert torch.equal(found, exact)
    set_assignment(module, network, uniform(network, "fp32"))
    for found, exact in zip(module(*inputs), network.module(*inputs), strict=True):
        assert torch.equal(found, exact)


def test_assignments_switch_without_tracing_again() -> None:
    network, module, inputs = quantizers("mobile")
    code, results = module.code, {}
    for name in ("w8a8", "w4a8", "w2a8", "bf16", "w4a16"):
        set_assignment(module, network, uniform(network, name))
        results[name] = decibels(module(*inputs)[0], network.module(*inputs)[0])
    assert module.code == code
    assert results["bf16"] > results["w8a8"] > results["w4a8"] > results["w2a8"]
    set_assignment(module, network, {})
    assert torch.equal(module(*inputs)[0], network.module(*inputs)[0])


def test_one_site_alone_is_quantized() -> None:
    network, module, inputs = quantizers("mobile")
    site = network.sites[2].id
    set_assignment(module, network, {site: "w4a8"})
    active = [
        index
        for index in range(len(network.sites))
        if not module.get_submodule(f"quantizer_{index}.weight").candidate.is_float
    ]
    assert active == [2]
    assert not torch.equal(module(*inputs)[0], network.module(*inputs)[0])


def test_insertion_leaves_its_input_alone() -> None:
    _, network, calibration, _ = case_of("mobile")
    after(network.module, InsertQuantizers(network=network, calibration=calibration))


def test_an_unknown_site_suggests_the_nearest() -> None:
    network, module, _ = quantizers("mobile")
    with pytest.raises(PlanError, match="unknown site") as caught:
        set_assignment(module, network, {"stem.0:conv2d#1": "w8a8"})
    assert "stem.0:conv2d#0" in str(caught.value.remedy)


# The integer graph


@pytest.mark.parametrize("name", CASES)
def test_fp32_everywhere_is_the_float_network(name: str) -> None:
    model, network, calibration, inputs = case_of(name)
    result = materialize(network, calibration, uniform(network, "fp32"))
    assert_same(model, result.module, inputs)


@pytest.mark.parametrize("name", CASES)
def test_w8a8_is_near_the_float_network(name: str) -> None:
    model, network, calibration, inputs = case_of(name)
    result = materialize(network, calibration, uniform(network, "w8a8"))
    assert decibels(result.module(*inputs), model(*inputs)) > 25


@pytest.mark.parametrize("name", ["mobile", "convolutions", "products"])
def test_errors_fall_with_bits(name: str) -> None:
    model, network, calibration, inputs = case_of(name)
    noise = {}
    for candidate in ("w2a8", "w4a8", "w8a8", "w8a4", "w8a2", "bf16", "fp32"):
        result = materialize(network, calibration, uniform(network, candidate))
        noise[candidate] = decibels(result.module(*inputs), model(*inputs))
    assert noise["w2a8"] < noise["w4a8"] < noise["w8a8"] < noise["bf16"] < noise["fp32"]
    assert noise["w8a2"] < noise["w8a4"] < noise["w8a8"]


@pytest.mark.parametrize("name", CASES)
def test_every_mix_of_formats_runs(name: str) -> None:
    model, network, calibration, inputs = case_of(name)
    for shift in range(len(FAMILIES)):
        cycle = itertools.cycle(FAMILIES[shift:] + FAMILIES[:shift])
        chosen: dict[str, str] = {}
        groups: dict[str, str] = {}
        for site in network.sites:
            chosen[site.id] = groups.setdefault(site.group, next(cycle))
        result = materialize(network, calibration, chosen)
        assert decibels(result.module(*inputs), model(*inputs)) > 3


@pytest.mark.parametrize("name", CASES)
def test_the_oracle_runs_other_batches(name: str) -> None:
    _, network, calibration, inputs = case_of(name)
    module = materialize(network, calibration, uniform(network, "w8a8")).module
    for whole, first in zip(module(*inputs), module(*(x[:2] for x in inputs)), strict=True):
        torch.testing.assert_close(whole[:2], first, rtol=1e-5, atol=1e-5)


def chain(*between: object) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *between, nn.Conv2d(8, 4, 1))
    return model, torch.randn(12, 3, 8, 8)


def materialized(model: nn.Module, x: Tensor, *names: str) -> Materialized:
    network, calibration = calibrated(model, x)
    candidates = itertools.cycle(names)
    return materialize(network, calibration, {s.id: next(candidates) for s in network.sites})


def test_codes_flow_between_integer_sites() -> None:
    model, x = chain(nn.MaxPool2d(2))
    module = materialized(model, x, "w8a8").module
    assert calls(module) == {"mpq_convert": 1, "mpq_qconv2d": 2, "mpq_max_pool2d": 1}
    first, second = [n for n in module.graph.nodes if n.target is qops.QCONV2D]
    assert (first.args[-1], second.args[-1]) == ("u8", "fp32")


def test_weight_bits_change_no_format() -> None:
    model, x = chain()
    for names in itertools.product(("w8a8", "w4a8", "w2a8"), repeat=2):
        assert calls(materialized(model, x, *names).module)["mpq_convert"] == 1


@pytest.mark.parametrize(
    ("names", "stores"),
    [
        (("w8a8", "bf16"), ["bf16", "fp32"]),
        (("bf16", "w8a8"), ["u8", "fp32"]),
        (("fp32", "w8a8"), ["u8", "fp32"]),
        (("w8a8", "fp32"), ["fp32", "fp32"]),
    ],
)
def test_a_site_stores_what_the_next_one_reads(names: tuple[str, str], stores: list[str]) -> None:
    model, x = chain()
    module = materialized(model, x, *names).module
    assert [n.args[-1] for n in module.graph.nodes if n.target is qops.QCONV2D] == stores


class Fork(nn.Module):
    """One tensor that two convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.a, self.b = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        return self.a(x), self.b(x)


def test_a_tensor_is_stored_in_the_widest_format_that_is_read() -> None:
    torch.manual_seed(0)
    network, _ = calibrated(Fork(), torch.randn(8, 3, 6, 6))
    table, stem = kinds(network), network.node_of["stem:conv2d#0"]

    def stored(a: str, b: str) -> str:
        names = dict(zip(network.node_of.values(), ("w8a8", a, b), strict=True))
        parsed = {node: Candidate.parse(name) for node, name in names.items()}
        return stored_formats(network, table, parsed)[stem]

    assert stored("w8a8", "w4a8") == "u8"
    assert stored("w8a8", "bf16") == "bf16"
    assert stored("bf16", "fp32") == "fp32"
    assert stored("w8a4", "w8a8") == "u8"
    assert stored("w8a4", "w4a4") == "u4"


class Gated(nn.Module):
    """A table whose input is also a residual of the network's output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x + self.b(F.silu(x))


def test_tables_between_integer_sites_are_integer() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    result = materialized(Gated(), x, "w8a8")
    assert calls(result.module) == {"mpq_convert": 1, "mpq_qconv2d": 2, "mpq_lut": 1}
    assert list(result.floats) == []


class Normed(Gated):
    """A table whose input is also read by a float operator."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return F.softmax(x, 1) + self.b(F.silu(x))


def test_a_table_reads_codes_of_a_tensor_that_is_stored_in_float() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    result = materialized(Normed(), x, "w8a8")
    assert calls(result.module)["mpq_lut"] == 1
    assert len(result.floats) == 1 and "softmax" in result.floats[0]
    assert decibels(result.module(x), result.network.module(x)) > 30


def test_moved_values_keep_their_quantizer() -> None:
    model, x = chain(nn.MaxPool2d(2))
    network, _ = calibrated(model, x)
    roots = quantizer_roots(network, kinds(network))
    site = network.node_of[network.sites[0].id]
    moved = [n.name for n in network.module.graph.nodes if roots[n.name] == site]
    assert moved == [site, "max_pool2d"]


def test_padding_codes_hold_zero() -> None:
    class Negative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(self.a(x), (1, 1, 1, 1))
            return self.b(x) + 0 * x

    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5)
    module = materialized(Negative(), x, "w8a8").module
    assert (module(x)[0][:, :, 0] == 0).all()


def test_weights_of_tied_sites_are_the_same() -> None:
    _, network, calibration, _ = case_of("tied")
    result = materialize(network, calibration, uniform(network, "w4a8"))
    first, second, _ = result.records.values()
    assert torch.equal(first.weight.codes, second.weight.codes)  # type: ignore[union-attr]


def test_a_group_that_does_not_fit_is_refused() -> None:
    _, network, calibration, _ = case_of("tied")
    with pytest.raises(PlanError, match="divide"):
        materialize(network, calibration, uniform(network, "w4a8g32"))


def test_an_accumulator_that_could_overflow_is_refused() -> None:
    model = nn.Linear(MAX_INPUTS + 1, 1)
    network, calibration = calibrated(model, torch.rand(2, MAX_INPUTS + 1))
    with pytest.raises(LoweringError, match="overflow") as caught:
        materialize(network, calibration, uniform(network, "w8a8"))
    assert caught.value.where == network.sites[0].id
    assert materialize(network, calibration, uniform(network, "fp32"))


def test_operators_without_a_rule_need_consent() -> None:
    class Multiplied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cumprod(self.a(x), dim=-1))

    torch.manual_seed(0)
    x = torch.randn(32, 6)
    network, calibration = calibrated(Multiplied(), x)
    with pytest.raises(UnsupportedOpError, match="aten.cumprod.default") as caught:
        materialize(network, calibration, uniform(network, "w8a8"))
    assert "torch.cumprod(self.a(x), dim=-1)" in str(caught.value.where)
    result = materialize(network, calibration, uniform(network, "w8a8"), allow_float=True)
    assert decibels(result.module(x), network.module(x)) > 25

"""Operators end to end: what TVM built equals the oracle, for each that has a lowering."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import BF16_TOLERANCE, FLOAT_TOLERANCE, assert_equal, decibels
from operator_nets import CASES
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import mpq_compile as mpq
from mpq_compile.pipeline import assign_session
from mpq_compile.session import Session


@cache
def session_of(name: str, batch: int = 1) -> Session:
    case = CASES[name]
    return Session(case.model(), case.inputs(batch), [case.inputs(24, seed=1)])


@cache
def network_of(name: str, candidate: str, batch: int = 1) -> mpq.CompiledNetwork:
    return assign_session(session_of(name, batch), candidate)


def slow(*values: Any) -> Any:
    """Mark a case that repeats on another network what the fast ones prove."""
    return pytest.param(*values, marks=pytest.mark.slow)


# At 4 bits convolutions run the 8-bit kernels; linears of few rows and joins are what differs.
FOUR_BITS = ("linears", "products", "concats", "two_inputs", "tied")


@pytest.mark.parametrize(
    ("name", "candidate"),
    [(name, "w8a8") for name in CASES]
    + [(name, "w4a8") if name in FOUR_BITS else slow(name, "w4a8") for name in CASES],
)
def test_integer_networks_equal_the_oracle(name: str, candidate: str) -> None:
    case, network = CASES[name], network_of(name, candidate)
    inputs = case.inputs(5, seed=2)
    found = network(*inputs)
    assert_equal(found, network.reference(*inputs), 0.0 if case.exact else FLOAT_TOLERANCE)
    least = 25 if candidate == "w8a8" else 8
    assert decibels(found, session_of(name).model(*inputs)) > least


@pytest.mark.parametrize("candidate", ["bf16", "w4a16"])
def test_few_channels_of_many_pixels(candidate: str) -> None:
    """LLVM joins their stores, and cannot select every shuffle of bf16 that this takes."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    network = mpq.assign(model, (image,), [image], candidate)
    assert_equal(network(image), network.reference(image), BF16_TOLERANCE)


@pytest.mark.parametrize(
    ("candidate", "tolerance"), [("fp32", FLOAT_TOLERANCE), ("bf16", BF16_TOLERANCE)]
)
@pytest.mark.parametrize(
    "name", ["convolutions", "transposed", "attention", slow("pools"), slow("shapes")]
)
def test_float_networks_equal_the_oracle(name: str, candidate: str, tolerance: float) -> None:
    network, inputs = network_of(name, candidate), CASES[name].inputs(3, seed=2)
    assert_equal(network(*inputs), network.reference(*inputs), tolerance)


@pytest.mark.parametrize("name", ["shapes", "two_inputs", "linears", slow("mobile"), slow("sums")])
def test_three_samples_are_compiled(name: str) -> None:
    case, network = CASES[name], network_of(name, "w8a8", batch=3)
    tolerance = 0.0 if case.exact else FLOAT_TOLERANCE
    for batch in (3, 1, 7):
        inputs = case.inputs(batch, seed=batch)
        assert_equal(network(*inputs), network.reference(*inputs), tolerance)


def test_every_assignment_of_mixed_candidates() -> None:
    names = ["w8a8", "bf16", "w2a8", "fp32", "w5a8", "w3a8", "w6a8", "w7a8", "w4a8"]
    for case in ("mobile", "concats"):
        session = session_of(case)
        sites = session.network.sites
        assignment = {s.id: names[i % len(names)] for i, s in enumerate(sites)}
        network = assign_session(session, assignment)
        inputs = CASES[case].inputs(3, seed=4)
        assert_equal(network(*inputs), network.reference(*inputs), BF16_TOLERANCE)
        asked = {row.site: row.requested for row in network.audit if row.requested != "float"}
        assert asked == assignment


def test_integers_of_every_width_mix_exactly() -> None:
    names = [f"w{bits}a8" for bits in (2, 3, 4, 5, 6, 7, 8)]
    session = session_of("convolutions")
    sites = session.network.sites
    network = assign_session(session, {s.id: names[i % len(names)] for i, s in enumerate(sites)})
    inputs = CASES["convolutions"].inputs(4, seed=4)
    assert_equal(network(*inputs), network.reference(*inputs))
    assert [row.stored_bits for row in network.audit] == [
        int(names[i % len(names)][1]) for i in range(len(sites))
    ]


class Wide(nn.Module):
    """Linear layers whose inputs divide into groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@pytest.mark.parametrize("candidate", ["w4a8g32", "w8a8g32", "w2a8g32", "w4a16", "w8a16"])
def test_linear_layers_by_group_and_weight_only(candidate: str) -> None:
    torch.manual_seed(3)
    x = torch.randn(6, 64)
    network = mpq.assign(Wide().eval(), x[:1], [x], candidate)
    tolerance = BF16_TOLERANCE if candidate.endswith("a16") else 0.0
    assert_equal(network(x), network.reference(x), tolerance)


def test_numpy_in_numpy_out() -> None:
    network, (x,) = network_of("mobile", "w8a8"), CASES["mobile"].inputs(2, seed=3)
    found = network(x.numpy())
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, network(x).numpy())


def test_several_outputs_of_numpy_come_as_a_tuple() -> None:
    network, inputs = network_of("two_inputs", "w8a8"), CASES["two_inputs"].inputs(2, seed=3)
    found, expected = network(*(x.numpy() for x in inputs)), network(*inputs)
    assert isinstance(found, tuple)
    for array, tensor in zip(found, pytree.tree_leaves(expected), strict=True):
        assert np.array_equal(array, tensor.numpy())


def test_outputs_keep_the_structure_of_the_model() -> None:
    inputs = CASES["two_inputs"].inputs(2, seed=3)
    assert set(network_of("two_inputs", "w8a8")(*inputs)) == {"logits", "aux"}
    (x,) = CASES["pools"].inputs(2)
    assert isinstance(network_of("pools", "w8a8")(x), tuple)


def test_layout_and_memory_of_the_input_do_not_matter() -> None:
    network, (x,) = network_of("mobile", "w8a8"), CASES["mobile"].inputs(3, seed=3)
    expected = network(x)
    shifted = torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x)
    variants = [
        x.to(memory_format=torch.channels_last),
        x.flip(0).flip(0),
        shifted,
        torch.cat([x, x], 3)[:, :, :, : x.shape[3]],
        x.clone().requires_grad_(),
    ]
    for variant in variants:
        assert torch.equal(network(variant), expected)


def test_an_output_is_not_overwritten_by_the_next_call() -> None:
    network = network_of("mobile", "w8a8")
    first, second = CASES["mobile"].inputs(1, seed=3)[0], CASES["mobile"].inputs(1, seed=4)[0]
    found = network(first)
    kept = found.clone()
    network(second)
    assert torch.equal(found, kept)


class Unsupported(nn.Module):
    """A running sum, which has no integer rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = torch.cumprod(x, 3)
        return self.b(x)


class Bilinear(Unsupported):
    """Bilinear interpolation and a remainder."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fmod(F.relu(self.a(x)), 0.7)
        return self.b(F.interpolate(x, scale_factor=2, mode="bilinear"))


class Picked(Unsupported):
    """An operator with several results, of which one is used."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.b(torch.median(x, 2, True).values)


@pytest.mark.parametrize(
    ("model", "operator", "line"),
    [
        (Unsupported, "aten.cumprod.default", "torch.cumprod(x, 3)"),
        (Bilinear, "aten.fmod.Scalar", "torch.fmod("),
        (Picked, "aten.median.dim", "torch.median(x, 2, True)"),
    ],
)
def test_an_unsupported_operator_is_named(model: type, operator: str, line: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    with pytest.raises(mpq.UnsupportedOpError) as caught:
        mpq.assign(model().eval(), x[:1], [x], "w8a8")
    message = str(caught.value)
    assert operator in message and line in message and "test_lowering.py" in message
    assert "allow_float=True" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("model", "operators"),
    [
        (Unsupported, {"aten.cumprod.default"}),
        (Bilinear, {"aten.fmod.Scalar", "aten.upsample_bilinear2d.vec"}),
        (Picked, {"aten.median.dim"}),
    ],
)
def test_an_unsupported_operator_runs_in_float_where_allowed(
    model: type, operators: set[str]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    network = mpq.assign(model().eval(), x[:1], [x], "w8a8", allow_float=True)
    assert_equal(network(x), network.reference(x), FLOAT_TOLERANCE)
    rows = [row for row in network.audit if row.requested == "float"]
    assert {row.kernel for row in rows} == {f"TVM: {name}" for name in operators}
    assert {row.compute for row in rows} == {"fp32"}


class Writes(nn.Module):
    """In-place operators, some of them on views of tensors that are used later."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.a(x)), inplace=True)
        flat = x.flatten(2)
        x.mul_(0.5).relu_()
        y = self.b(x)
        y += x
        return self.fc(F.hardswish(y, inplace=True).mean((2, 3)) + flat.sum(2))


def test_in_place_operators_write_what_they_write_in_pytorch() -> None:
    torch.manual_seed(0)
    model, x = Writes().eval(), torch.randn(16, 3, 6, 6)
    network = mpq.assign(model, x[:1], [x], "w8a8", allow_float=True)
    assert_equal(network(x), network.reference(x), FLOAT_TOLERANCE)
    assert decibels(network(x), model(x)) > 25


class AcrossSamples(nn.Module):
    """Subtracts the mean over the batch: samples are not apart."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return x - x.mean(0, keepdim=True)


class OverAll(AcrossSamples):
    """A reduction of the whole tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return x - x.mean() + x.sum()


class BatchLast(AcrossSamples):
    """Returns the batch in dimension 1."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).transpose(0, 1)


@pytest.mark.parametrize("model", [AcrossSamples, OverAll, BatchLast])
def test_only_the_compiled_batch_runs_where_samples_are_not_apart(model: type) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    network = mpq.assign(model().eval(), x[:4], [x], "w8a8")
    assert_equal(network(x[:4]), network.reference(x[:4]), FLOAT_TOLERANCE)
    with pytest.raises(mpq.MpqError, match="wrong input"):
        network(x)


def test_inputs_of_different_batches_are_refused() -> None:
    network = network_of("two_inputs", "w8a8")
    image, vector = CASES["two_inputs"].inputs(4)
    with pytest.raises(mpq.MpqError, match="wrong input"):
        network(image, vector[:3])
    with pytest.raises(mpq.MpqError, match="wrong input"):
        network(image, vector.numpy())


def test_wrong_inputs_are_refused() -> None:
    network, (x,) = network_of("mobile", "w8a8"), CASES["mobile"].inputs(2)
    for wrong in ((x, x), (x.double(),), (x[:, :2],), (x[:0],), (x[0],), ("text",)):
        with pytest.raises(mpq.MpqError, match="wrong input") as caught:
            network(*wrong)
        assert "float32[1, 3, 12, 12]" in str(caught.value)
    with pytest.raises(mpq.MpqError, match="no input"):
        network()


class Tokens(nn.Module):
    """Integer inputs: an embedding, positions, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.positions = nn.Parameter(torch.randn(1, 5, 12))
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.positions
        return self.b(F.gelu(self.a(x)).mean(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_integer_inputs(batch: int) -> None:
    torch.manual_seed(0)
    model, tokens = Tokens().eval(), torch.randint(0, 20, (16, 5))
    network = mpq.assign(model, tokens[:batch], [tokens], "w8a8", allow_float=True)
    assert_equal(network(tokens), network.reference(tokens), FLOAT_TOLERANCE)
    assert decibels(network(tokens), model(tokens)) > 25


class Mask(nn.Module):
    """Ends with a sigmoid, which is computed in float because the output is float."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.b(torch.sigmoid(self.a(x))))


def test_the_audit_lists_every_operator_that_runs_in_float() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5)
    network = mpq.assign(Mask().eval(), x[:1], [x], "w8a8")
    assert_equal(network(x), network.reference(x), FLOAT_TOLERANCE)
    rows = [row for row in network.audit if row.requested == "float"]
    assert [(row.compute, row.kernel) for row in rows] == [("fp32", "TVM: aten.sigmoid.default")]

"""QDQ ONNX in ONNX Runtime agrees with the oracle: operators, widths, sizes, errors."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from exported import compare, materialized, run, steps_off
from onnx import TensorProto
from operator_nets import CASES
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.integrations.qdq.graph import Export
from mpq_compile.pipeline import assign

# Layers whose states pass on a code that differs by one, step after step.
STEPS_OFF = {"recurrent": 2}


@pytest.mark.parametrize("name", CASES)
def test_every_operator_agrees(name: str) -> None:
    case = CASES[name]
    graph = materialized(case.model(), case.inputs(8), "w8a8")
    off = compare(graph, case.inputs(16, seed=1))
    assert (off <= STEPS_OFF.get(name, 1)).mean() >= 0.999


@pytest.mark.parametrize("name", ["convolutions", "attention", "pools", "products"])
@pytest.mark.parametrize("candidate", ["fp32", "bf16"])
def test_float_sites(name: str, candidate: str) -> None:
    case = CASES[name]
    off = compare(materialized(case.model(), case.inputs(8), candidate), case.inputs(8, seed=1))
    assert off.max() < (1e-2 if candidate == "fp32" else 1.0)


class Wide(nn.Module):
    """A convolution, a depthwise one, a residual sum and linears that groups of 32 divide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.fc, self.head = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.relu(x + self.depthwise(x))
        return self.head(F.relu(self.fc(x.flatten(2).transpose(1, 2))))


def wide() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return Wide().eval(), torch.randn(16, 3, 6, 6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width(bits: int) -> None:
    model, x = wide()
    graph = materialized(model, [x], f"w{bits}a8")
    assert (compare(graph, [x]) <= 1).mean() >= 0.999
    kind = TensorProto.INT4 if bits <= 4 else TensorProto.INT8
    stored = [t for t in Export(graph).model().graph.initializer if t.name.endswith("weight_codes")]
    assert [tensor.data_type for tensor in stored] == [kind] * 4


@pytest.mark.parametrize("bits", [4, 6])
def test_narrow_activations(bits: int) -> None:
    """One code of a narrow tensor is many steps of the output: nearly all are the same."""
    model, x = wide()
    off = compare(materialized(model, [x], f"w8a{bits}"), [x])
    assert (off <= 1).mean() >= 0.98


@pytest.mark.parametrize(
    "candidate", ["w4a8g32", "w4a16", "w4a16g32", "w8a8d", "w4a8d", "w4a8g32d"]
)
def test_linears_of_every_kind(candidate: str) -> None:
    model, x = wide()
    mixed = {
        "conv:conv2d#0": "w8a8",
        "depthwise:conv2d#0": "w8a8",
        "fc:linear#0": candidate,
        "head:linear#0": candidate,
    }
    graph = materialized(model, [x], mixed)
    assert (compare(graph, [x]) <= 1).mean() >= 0.999
    blocks = [
        attribute.i
        for node in Export(graph).model().graph.node
        for attribute in node.attribute
        if attribute.name == "block_size"
    ]
    assert blocks == ([32, 32] if "g32" in candidate else [])


def test_four_bits_are_four_bits_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    x = torch.randn(8, 256)
    sizes = {}
    for candidate in ("w4a8", "w8a8", "fp32"):
        content = Export(materialized(model, [x], candidate)).model().SerializeToString()
        sizes[candidate] = len(content)
    weights, rest = 2 * 256 * 512, 4 * (512 + 256) * 2 + 4000
    assert weights / 2 < sizes["w4a8"] < weights / 2 + rest
    assert weights < sizes["w8a8"] < weights + rest
    assert sizes["fp32"] > 4 * weights


def test_any_batch() -> None:
    model, x = wide()
    graph = materialized(model, [x], "w8a8")
    onnx_model = Export(graph).model()
    assert onnx_model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for size in (1, 5):
        found = run(onnx_model, [x[:size]])
        assert (steps_off(found, graph.module(x[:size])) <= 1).all()


class Tokens(nn.Module):
    """A class token that is repeated for the batch, ids, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Embedding(20, 16), nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(ids.shape[0], -1, -1), self.embed(ids)], 1)
        return self.head(self.layer(x))


@pytest.mark.parametrize("candidate", ["w8a8", "w8a8d"])
def test_a_transformer_that_reads_ids(candidate: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (12, 9))
    graph = materialized(Tokens().eval(), [ids], candidate)
    assert (compare(graph, [ids]) <= 1).mean() >= 0.999


def test_int32_biases_stand_where_integer_kernels_read_them() -> None:
    model, x = wide()
    graph = materialized(model, [x], "w8a8")
    content = Export(graph, int32_biases=True).model()
    stored = {t.name: t.data_type for t in content.graph.initializer if "bias" in t.name}
    assert stored["conv.bias_codes"] == TensorProto.INT32
    assert (steps_off(run(content, [x]), graph.module(x)) <= 2).mean() >= 0.999


def test_a_network_that_was_built(tmp_path: Path) -> None:
    model, x = wide()
    net = assign(model, x[:1], [x], "w8a8", tuned=False)
    path = mpq.export_onnx(net, tmp_path / "net.onnx")
    assert (steps_off(run(path.read_bytes(), [x]), [net.reference(x)]) <= 1).mean() >= 0.999
    stored = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(stored["mpq.assignment"]) == net.plan.assignment
    # The plan alone, with model and data, gives the same file without building anything.
    same = mpq.export_onnx(net.plan, tmp_path / "plan.onnx", model, x[:1], [x])
    assert same.read_bytes() == path.read_bytes()
    net.save(tmp_path / "artifact")
    with pytest.raises(mpq.MpqError, match="no PyTorch reference"):
        mpq.export_onnx(mpq.load(tmp_path / "artifact"), path)
    with pytest.raises(mpq.PlanError, match="a plan alone"):
        mpq.export_onnx(net.plan, path)
    with pytest.raises(mpq.PlanError, match="unknown kind of biases"):
        mpq.export_onnx(net, path, biases="int23")


class Differences(nn.Module):
    """Differences of tensors of one shape: behind sites, and behind what is none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.c = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(F.relu(self.a(x) - self.b(x)))
        return F.relu(y) - torch.sigmoid(y)


@pytest.mark.parametrize("candidate", ["w8a8", "fp32"])
def test_differences_are_no_sums(candidate: str) -> None:
    torch.manual_seed(6)
    x = torch.randn(16, 3, 6, 6)
    off = compare(materialized(Differences().eval(), (x,), candidate), (x,))
    assert (off <= 1).mean() >= 0.999


class Places(nn.Module):
    """Where the greatest and the least stand, along a dimension and among all values."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.layer(x)
        return y.argmax(1), y.argmin(-1, keepdim=True), torch.max(y, 1).indices


def test_places_are_whole_numbers() -> None:
    torch.manual_seed(5)
    x = torch.randn(64, 8)
    graph = materialized(Places().eval(), (x,), "w8a8")
    with torch.no_grad():
        expected = graph.module(x)
    for found, places in zip(run(Export(graph).model(), (x,)), expected, strict=True):
        assert found.dtype == places.numpy().dtype and found.shape == tuple(places.shape)
        assert (found == places.numpy()).mean() > 0.95


def test_an_operator_without_a_form_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.cumprod(x, 1))

    x = torch.randn(4, 8)
    from mpq_compile.session import Session

    session = Session(Odd().eval(), x[:1], [x], "bit_serial", allow_float=True)
    graph = session.materialized({"fc:linear#0": "w8a8"})
    with pytest.raises(mpq.UnsupportedOpError, match="cumprod"):
        Export(graph).model()

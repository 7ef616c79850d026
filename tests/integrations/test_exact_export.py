"""Exported integers in ONNX Runtime equal the oracle bit for bit, and the QDQ form does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import compare, materialized, run
from onnx import TensorProto
from operator_nets import CASES
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.integrations.qdq.graph import Export


class Deep(nn.Module):
    """Residual blocks behind each other: a code that is off by one moves others after it."""

    def __init__(self, blocks: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        pairs = [
            nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)])
            for _ in range(blocks)
        ]
        self.blocks = nn.ModuleList(pairs)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=8)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for first, second in self.blocks:
            x = F.relu(x + second(F.relu(first(x))))
        x = F.hardswish(self.down(F.max_pool2d(x, 2)))
        return self.head(F.adaptive_avg_pool2d(x, 2).mean((2, 3)))


def deep() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Deep().eval(), torch.randn(16, 3, 32, 32)


@pytest.mark.parametrize("candidate", ["w8a8", "w4a8", "w3a8", "w2a8", "w6a6", "w4a4"])
def test_a_deep_network_is_equal(candidate: str) -> None:
    model, x = deep()
    graph = materialized(model, [x], candidate)
    y = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = graph.module(y)[0].numpy()
    assert np.array_equal(run(Export(graph, exact=True).model(), [y])[0], expected)


def test_float_operators_between_codes_are_not_equal() -> None:
    """What the exact form is for: otherwise a test of it shows nothing."""
    model, x = deep()
    graph = materialized(model, [x], "w8a8")
    with torch.no_grad():
        expected = graph.module(x)[0].numpy()
    assert not np.array_equal(run(Export(graph).model(), [x])[0], expected)


@pytest.mark.parametrize("name", CASES)
def test_every_operator_agrees(name: str) -> None:
    case = CASES[name]
    graph = materialized(case.model(), case.inputs(8), "w8a8")
    inputs = case.inputs(16, seed=1)
    off = compare(graph, inputs, exact=True)
    assert (off <= 1).mean() >= 0.999
    export = Export(graph, exact=True)
    model = export.model()
    nodes = {node.name for node in graph.module.graph.nodes}
    assert set(export.inexact) <= nodes
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["mpq.inexact"]) == export.inexact
    if not export.inexact:
        assert off.max() == 0


@pytest.mark.parametrize("name", ["convolutions", "pools", "products", "attention", "edges"])
@pytest.mark.parametrize("candidate", ["fp32", "bf16", "w4a16"])
def test_sites_in_float_stay_as_they_are(name: str, candidate: str) -> None:
    case = CASES[name]
    graph = materialized(case.model(), case.inputs(8), candidate)
    off = compare(graph, case.inputs(8, seed=1), exact=True)
    export = Export(graph, exact=True)
    export.model()
    sites = {node for node, record in graph.records.items() if record.site.multiplies}
    assert sites <= set(export.inexact)
    assert off.max() < (1e-2 if candidate == "fp32" else 1.0)


def test_sums_that_float32_does_not_hold_keep_their_form() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for size, form in ((256, "MatMul"), (257, "GlobalAveragePool")):
        x = 4 + torch.rand(2, 1, size, size)
        graph = materialized(model.eval(), [x], "w8a8")
        kinds = {node.op_type for node in Export(graph, exact=True).model().graph.node}
        assert form in kinds
        assert compare(graph, [x], exact=True).max() <= 1


def test_formats_meet() -> None:
    """Codes that float sites read, and floats that integer sites read, by every way between."""
    model, x = deep()
    sites = list(materialized(model, [x], "w8a8").records.values())
    names = ["w8a8", "bf16", "w4a8", "fp32"]
    assignment = {record.site.id: names[i % 4] for i, record in enumerate(sites)}
    assert (compare(materialized(model, [x], assignment), [x], exact=True) <= 1).mean() >= 0.999


def test_weights_are_stored_at_their_width() -> None:
    model, x = deep()
    narrow = Export(materialized(model, [x], "w4a8"), exact=True).model()
    stored = [t for t in narrow.graph.initializer if t.name.endswith("weight_codes")]
    assert len(stored) == 19
    assert {tensor.data_type for tensor in stored} == {TensorProto.INT4}
    wide = Export(materialized(model, [x], "w8a8"), exact=True).model()
    weights = sum(weight.numel() for name, weight in model.named_parameters() if "weight" in name)
    assert wide.ByteSize() - narrow.ByteSize() == pytest.approx(weights / 2, rel=0.05)


def test_the_batch_stays_free() -> None:
    model, x = deep()
    graph = materialized(model, [x], "w8a8")
    content = Export(graph, exact=True).model().SerializeToString()
    for samples in (1, 5):
        with torch.no_grad():
            expected = graph.module(x[:samples])[0].numpy()
        assert np.array_equal(run(content, [x[:samples]])[0], expected)


def test_rounded_biases_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    network = mpq.assign(nn.Linear(4, 3).eval(), x[:1], [x], "w8a8")
    with pytest.raises(mpq.PlanError, match="not those of the deployed network"):
        mpq.export_onnx(network, tmp_path / "net.onnx", biases="int32", exact=True)
    path = mpq.export_onnx(network, tmp_path / "net.onnx", exact=True)
    assert np.array_equal(run(path.read_bytes(), [x])[0], network(x).numpy())

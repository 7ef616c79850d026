"""Blocks of graphs whose blocks are known."""

from __future__ import annotations

import operator_nets
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import prepare
from mpq_compile.reconstruct.blocks import block_units, parts
from mpq_compile.reconstruct.lockstep import site_units
from mpq_compile.sensitivity.base import QuantizedGraph


def graph_of(model: nn.Module, *inputs: Tensor) -> QuantizedGraph:
    torch.manual_seed(0)
    network = prepare(capture(model.eval(), tuple(x[:1] for x in inputs)))
    return QuantizedGraph(network, calibrate(network, read_batches([inputs], network)))


def blocks_of(model: nn.Module, *inputs: Tensor, largest: int = 8) -> list[list[str]]:
    """Return the module paths of the sites of each block."""
    units = block_units(graph_of(model, *inputs), largest)
    return [[site.partition(":")[0] for site in unit.sites] for unit in units if unit.sites]


class Basic(nn.Module):
    """A residual block; its skip is a convolution where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.two(F.relu(self.norm(self.one(x)))))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = Basic(8, 8), Basic(8, 12, 2)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(F.relu(self.stem(x)))).mean((2, 3)))


def test_residual_blocks() -> None:
    assert [sorted(block) for block in blocks_of(Residual(), torch.randn(4, 3, 8, 8))] == [
        ["stem"],
        ["a.one", "a.two"],
        ["b.one", "b.skip", "b.two"],
        ["head"],
    ]


class Inverted(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze and excite, project."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        wide = 2 * inputs
        self.expand, self.project = nn.Conv2d(inputs, wide, 1), nn.Conv2d(wide, outputs, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.skips = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = self.project(y * F.hardsigmoid(gate))
        return x + y if self.skips else y


def test_an_inverted_residual_is_a_block() -> None:
    sites = ["expand", "depthwise", "squeeze", "excite", "project"]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Inverted(8, 8))
    assert blocks_of(model, torch.randn(4, 3, 6, 6)) == [["0"], [f"1.{site}" for site in sites]]


def test_without_its_skip_it_is_cut_where_one_tensor_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Inverted(8, 10))
    assert blocks_of(model, torch.randn(4, 3, 6, 6)) == [
        ["0"],
        ["1.expand"],
        ["1.depthwise", "1.squeeze", "1.excite"],
        ["1.project"],
    ]


def test_a_depthwise_convolution_goes_with_the_next() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()]
    model = nn.Sequential(*layers)
    assert blocks_of(model, torch.randn(4, 3, 9, 9)) == [["0"], ["2", "4"], ["6", "8"]]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def test_attention_and_its_mlp() -> None:
    assert blocks_of(Transformer(), torch.randn(4, 6, 5)) == [
        ["embed"],
        ["qkv", "out"],
        ["up", "down"],
        ["head"],
    ]


class Dense(nn.Module):
    """Everything stays alive until the last sum."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        kept = [x]
        for layer in self.layers:
            kept.append(F.relu(layer(kept[-1])))
        return torch.stack(kept).sum(0)


def test_what_is_too_large_is_cut_into_its_sites() -> None:
    x = torch.randn(4, 4)
    assert blocks_of(Dense(5), x, largest=5) == [[f"layers.{i}" for i in range(5)]]
    assert blocks_of(Dense(5), x, largest=4) == [[f"layers.{i}"] for i in range(5)]


@pytest.mark.parametrize("name", sorted(operator_nets.CASES))
def test_blocks_hold_each_node_once(name: str) -> None:
    case = operator_nets.CASES[name]
    graph = graph_of(case.model(), *case.inputs(4))
    units = block_units(graph)
    nodes = [node for unit in units for node in unit.nodes]
    assert nodes == list(graph.module.graph.nodes)
    assert [s for unit in units for s in unit.sites] == [site.id for site in graph.network.sites]
    for unit in units:
        cut = parts(graph, unit)
        assert sorted(node.name for part in cut for node in part.nodes) == sorted(
            node.name for node in unit.nodes
        )
        assert tuple(site for part in cut for site in part.sites) == unit.sites
    assert max(len(unit.sites) for unit in site_units(graph)) == 1

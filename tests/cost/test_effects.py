"""Edges and joins of real networks, and what the latency model learns of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpq_compile.capture import capture
from mpq_compile.cost.effects import Edge, Effects, Join, effects_of
from mpq_compile.cost.latency import LatencyModel, Observation
from mpq_compile.passes.network import prepare
from mpq_compile.types import CostTable


class Branches(nn.Module):
    """A convolution, two that read it, and a concatenation of both that another one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([self.left(x), torch.relu(self.right(x))], 1))


def test_edges_and_joins() -> None:
    network = prepare(capture(Branches(), torch.randn(1, 3, 8, 8)))
    stem, left, right, head = (site.id for site in network.sites)
    found = effects_of(network)
    assert {(edge.a, edge.b) for edge in found.edges} == {(stem, left), (stem, right)}
    assert sum(edge.weight for edge in found.edges) == pytest.approx(1.0)
    (join,) = found.joins
    assert (set(join.sites), join.weight) == ({left, right}, 1.0)
    assert "cat" in join.operator
    assert head not in join.sites


def test_row() -> None:
    effects = Effects(
        edges=(Edge(a="a", b="b", weight=0.75), Edge(a="b", b="c", weight=0.25)),
        joins=(Join(operator="add", sites=("a", "c"), weight=1.0),),
    )
    assert effects.row({"a": "u8", "b": "fp32", "c": "fp32"}) == {
        ("edge", "u8", "fp32"): 0.75,
        ("add", "fp32"): 1.0,
    }
    assert effects.row(dict.fromkeys("abc", "bf16")) == {("add", "bf16"): 1.0}


def test_what_changes_of_format_cost_is_learned() -> None:
    """True costs: sites as measured, 8 µs for each change of format between neighbours."""
    sites = [f"s{i}" for i in range(9)]
    alone = {s: {"fp32": {"latency_us": 20.0}, "w8a8": {"latency_us": 10.0}} for s in sites}
    edges = tuple(Edge(a=a, b=b, weight=1 / 8) for a, b in zip(sites, sites[1:], strict=False))
    model = LatencyModel(
        costs=CostTable(costs=alone),
        kernels={s: {"fp32": f"{s}f", "w8a8": f"{s}i"} for s in sites},
        effects=Effects(edges=edges),
    )

    def assignment(bits: str) -> dict[str, str]:
        return {s: "fp32" if bit == "f" else "w8a8" for s, bit in zip(sites, bits, strict=True)}

    def observed(bits: str) -> Observation:
        us = sum(20.0 if bit == "f" else 10.0 for bit in bits)
        changes = sum(a != b for a, b in zip(bits, bits[1:], strict=False))
        return Observation(assignment=assignment(bits), latency_us=us + 8.0 * changes, error=0.001)

    seen = [observed(bits) for bits in ("f" * 9, "i" * 9, "fifififif", "iffiifffi")]
    learned = model.learned(seen)
    unseen = observed("ifififiii")
    before = abs(model.learned(seen[:2]).predict(unseen.assignment).mean_us - unseen.latency_us)
    after = abs(learned.predict(unseen.assignment).mean_us - unseen.latency_us)
    assert after < 0.4 * before
    pair = learned.table().transitions["s0", "s1"]
    assert pair["fp32", "fp32"] == 0.0
    assert pair["fp32", "u8"] == pytest.approx(8.0, rel=0.4)

"""Nothing runs unscheduled: no large loop of any lowered network is both scalar and serial."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from decoder_nets import Size, make
from operator_nets import CASES
from torch import Tensor, nn

from mpq_compile.kernels.emit import PARALLEL_ELEMENTS
from mpq_compile.kernels.plain_loops import unscheduled
from mpq_compile.kernels.tier import detect_tier, host_tiers
from mpq_compile.lower.lowering import lower
from mpq_compile.lower.pipeline import lower_pipeline
from mpq_compile.passes.materialize import materialize
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

THREADS = 2
# Iterations below which sharing a loop would cost more than it gains.
LARGE = PARALLEL_ELEMENTS


class Residual(nn.Module):
    """A residual network with a strided block, pooling, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2, 3)
        self.a, self.b = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.c, self.d = nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, padding=1)
        self.short, self.fc = nn.Conv2d(32, 64, 1, 2), nn.Linear(64, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.short(x) + self.d(F.relu(self.c(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inverted(nn.Module):
    """Inverted residual blocks, with ReLU6, hardswish and squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.up, self.spatial = nn.Conv2d(16, 96, 1), nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.squeeze, self.excite = nn.Conv2d(96, 24, 1), nn.Conv2d(24, 96, 1)
        self.down, self.head = nn.Conv2d(96, 16, 1), nn.Conv2d(16, 320, 1)
        self.fc = nn.Linear(320, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.relu6(self.spatial(F.relu6(self.up(x))))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        x = x + self.down(y * F.hardsigmoid(gate))
        return self.fc(F.hardswish(self.head(x)).mean((2, 3)))


class Encoder(nn.Module):
    """One encoder layer over tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 256, activation="gelu", batch_first=True)
        self.layer, self.fc = layer, nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer(x).mean(1))


NETWORKS = {
    "residual": (Residual, (3, 64, 64)),
    "inverted": (Inverted, (3, 64, 64)),
    "encoder": (Encoder, (128, 128)),
}
DECODER = Size(width=128, layers=1, heads=4, shared=2, vocabulary=1000, cache=512)


def batch_of(session: Session) -> int:
    """Return the samples that make the tensors of a small network large."""
    shapes = [shape for shape, _ in session.network.shapes.values()]
    return -(-2 * LARGE // max(math.prod(shape) for shape in shapes))


def lowered_session(session: Session, candidate: str, tier) -> list[str]:
    """Return the functions of a network that run large loops plainly."""
    assignment = {site.id: candidate for site in session.network.sites}
    materialized = materialize(session.network, session.calibration_for({}), assignment)
    inputs = session.network.captured.example_inputs
    module = lower_pipeline(lower(materialized, inputs, tier, THREADS).module, tier, THREADS)
    return unscheduled(module, LARGE)


@cache
def enlarged(name: str) -> Session:
    """Return a small network compiled for enough samples that its tensors are large."""
    case, calibration = CASES[name], CASES[name].inputs(4)
    small = Session(case.model(), case.inputs(1), [calibration])
    return Session(case.model(), case.inputs(batch_of(small)), [calibration])


@pytest.mark.parametrize("name", CASES)
def test_every_operator(name: str) -> None:
    assert lowered_session(enlarged(name), "w8a8", detect_tier()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_operator_on_the_plainest_tier_and_in_bf16(name: str) -> None:
    assert lowered_session(enlarged(name), "w8a8", host_tiers()[-1]) == []
    assert lowered_session(enlarged(name), "bf16", detect_tier()) == []


@cache
def network_session(name: str) -> Session:
    """Return a network at a size at which schedules matter."""
    torch.manual_seed(0)
    model, shape = NETWORKS[name]
    x = torch.randn(2, *shape)
    return Session(model().eval(), (x[:1],), [(x,)])


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(name: str) -> None:
    assert lowered_session(network_session(name), "w8a8", detect_tier()) == []


@pytest.mark.slow
@pytest.mark.parametrize("candidate", ["w4a8", "bf16", "fp32", "w8a16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_of_other_candidates(name: str, candidate: str) -> None:
    assert lowered_session(network_session(name), candidate, detect_tier()) == []


@pytest.mark.parametrize("candidate", ["w8a8", "w4a16g32"])
@pytest.mark.parametrize("tokens", [1, 96])
@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_decoders(kind: str, tokens: int, candidate: str) -> None:
    size = DECODER if kind == "llama" else replace(DECODER, shared=DECODER.heads)
    samples = [size.step(seed, 5, tokens) for seed in range(2)]
    session = Session(make(kind, size), samples[0], samples, recipe=Recipe(rounding="nearest"))
    assert lowered_session(session, candidate, detect_tier()) == []


def test_dynamic_activations() -> None:
    x = torch.randn(2, 256, 128)
    session = Session(nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 64)), (x[:1],), [(x,)])
    assert lowered_session(session, "w8a8d", detect_tier()) == []

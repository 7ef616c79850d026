"""What the tests of data share: a network of images, and what it wants."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from mpq_compile.capture import capture
from mpq_compile.data.batches import wanted_by
from mpq_compile.data.wanted import Wanted
from mpq_compile.passes.network import Network, prepare

X = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40)


@cache
def network(channels: int = 3) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return prepare(capture(model, torch.randn(1, channels, 6, 6)))


class FixedBatch(nn.Module):
    """Mixes the samples of a batch, so that other lengths mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(2, 4, 16) - self.conv(x).mean(0, keepdim=True).reshape(1, 4, 16)


@cache
def fixed_network() -> Network:
    torch.manual_seed(0)
    return prepare(capture(FixedBatch(), torch.randn(2, 3, 6, 6)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Conv2d(3, 2, 3), nn.Linear(5, 2)

    def forward(self, pixels: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        return self.image(pixels).mean((2, 3)) + self.vector(facts)


@cache
def two_inputs() -> Network:
    torch.manual_seed(0)
    return prepare(capture(TwoInputs(), (torch.randn(1, 3, 6, 6), torch.randn(1, 5))))


def wanted(samples: int | None = None, seed: int = 0, channels: int = 3) -> Wanted:
    return wanted_by(network(channels), samples, seed)

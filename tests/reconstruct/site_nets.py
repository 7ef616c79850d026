"""A small network with its data, and the fits of its sites."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.calibration import Calibration
from mpq_compile.reconstruct.per_site import reconstruct_per_site


class Residual(nn.Module):
    """Two convolutions with a skip, a depthwise one, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.one, self.two = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.two(F.relu(self.one(x))))
        return self.head(F.relu(self.depthwise(x)).mean((2, 3)))


def images(count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


def smooth(x: Tensor) -> Tensor:
    """Return images whose neighbouring pixels go together."""
    return F.avg_pool2d(x, 3, 1, 1)


class Setting:
    """A prepared network with its data, and fits of it."""

    def __init__(self, model: nn.Module | None = None, x: Tensor | None = None) -> None:
        torch.manual_seed(0)
        x = images() if x is None else x
        self.network: Network = prepare(capture((model or Residual()).eval(), x[:1]))
        self.batches: tuple[Batch, ...] = read_batches([x], self.network)
        self.ranges: Calibration = calibrate(self.network, self.batches)
        self.sites = [site.id for site in self.network.sites]

    def fitted(self, choices: Any, memory_mb: float = 1024.0) -> Calibration:
        """Return a calibration with the fits of some candidates."""
        fresh = calibrate(self.network, self.batches)
        reconstruct_per_site(self.network, fresh, self.batches, choices, memory_mb)
        return fresh

    def everywhere(self, *names: str) -> Calibration:
        """Return a calibration with the fits of the same candidates at every site."""
        return self.fitted(dict.fromkeys(self.sites, names))


def same(one: Calibration, two: Calibration, key: Any) -> bool:
    """Tell whether two calibrations have one fit of a site and spec."""
    a, b = one.weights[key], two.weights[key]
    shifts = one.fits[key].shift, two.fits[key].shift
    return torch.equal(a.codes, b.codes) and torch.equal(a.scale, b.scale) and torch.equal(*shifts)

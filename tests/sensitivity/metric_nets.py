"""Small networks whose sensitivities can be checked by hand, prepared and calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.calibration import Calibration
from mpq_compile.types import SensitivityTable


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A prepared network, its calibration, and batches."""

    network: Network
    calibration: Calibration
    batches: tuple[Batch, ...]

    @property
    def sites(self) -> list[str]:
        """Ids of the sites."""
        return [site.id for site in self.network.sites]

    def measure(self, metric, names, batches=None) -> SensitivityTable:
        """Run a metric with the same candidates everywhere."""
        choices = dict.fromkeys(self.sites, names)
        return metric(self.network, self.calibration, batches or self.batches, choices)


def setting(model: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor | None = None) -> Setting:
    """Prepare a network; the inputs are also its calibration data."""
    network = prepare(capture(model.eval(), tuple(x[:1] for x in inputs)))
    item = (inputs, labels) if labels is not None else (inputs if len(inputs) > 1 else inputs[0])
    batches = read_batches([item], network)
    return Setting(network=network, calibration=calibrate(network, batches), batches=batches)


class Branches(nn.Module):
    """Residuals, two branches and an in-place activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.fc = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.a(x), inplace=True)
        x = F.relu(self.b(x) + self.c(x))
        return self.fc(x.mean((2, 3)))


class Chain(nn.Module):
    """Three linear layers with smooth activations."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))

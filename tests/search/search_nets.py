"""Small networks whose best bits are known, prepared and calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.calibration import Calibration
from mpq_compile.search.loop import search
from mpq_compile.search.options import SearchOptions
from mpq_compile.search.policy import Policy
from mpq_compile.training.epochs import read_epochs
from mpq_compile.training.state import TrainingState


class Small(nn.Module):
    """A residual, a depthwise convolution, a hardswish, a gate and a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + F.hardswish(self.one(x)))
        x = F.relu(self.depthwise(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


class Unequal(nn.Module):
    """Two layers side by side, of which the output hears one only through a whisper.

    ``loud`` decides the class by which of its outputs is largest; what ``quiet`` adds is a
    thousandth of that. Both cost the same, so bits belong to ``loud``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(16, 10, bias=False), nn.Linear(16, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 8 * self.loud(x) + 8e-3 * self.quiet(x)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A prepared network, its calibration, and its labelled samples."""

    network: Network
    calibration: Calibration
    batches: tuple[Batch, ...]
    x: Tensor
    y: Tensor

    @property
    def sites(self) -> list[str]:
        """Ids of the sites."""
        return [site.id for site in self.network.sites]

    def bops(self, name_bits: float) -> float:
        """Return the BOPs of ``name_bits`` = weight bits · activation bits everywhere."""
        return name_bits * sum(site.macs for site in self.network.sites)

    def search(
        self,
        names: tuple[str, ...],
        options: SearchOptions,
        seed: int = 0,
        state: TrainingState | None = None,
    ) -> Policy:
        """Search with the same candidates everywhere."""
        data = read_epochs([(self.x, self.y)], self.network, 32, seed)
        choices = dict.fromkeys(self.sites, names)
        return search(
            *(self.network, self.calibration, self.batches, data, choices, options, seed, state)
        )


def setting(model: nn.Module, x: Tensor, y: Tensor) -> Setting:
    """Prepare a network; the inputs are also its calibration data."""
    network = prepare(capture(model.eval(), x[:1]))
    batches = read_batches([(x, y)], network)
    return Setting(
        network=network, calibration=calibrate(network, batches), batches=batches, x=x, y=y
    )


def small(samples: int = 96) -> Setting:
    """Return a random network with the labels that it gives itself."""
    torch.manual_seed(0)
    model = Small().eval()
    x = torch.randn(samples, 3, 6, 6)
    with torch.no_grad():
        return setting(model, x, model(x).argmax(1))


def unequal(samples: int = 256) -> Setting:
    """Return the two layers with the labels that they give themselves."""
    torch.manual_seed(0)
    model = Unequal().eval()
    x = torch.randn(samples, 16)
    with torch.no_grad():
        return setting(model, x, model(x).argmax(1))

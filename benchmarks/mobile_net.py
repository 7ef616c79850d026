"""Networks like MobileNet-V2, MobileNet-V3 and EfficientNet, small enough to train in minutes.

Inverted residuals with depthwise 3×3 and 5×5; ReLU6, or hardswish with squeeze and excitation by
hardsigmoid, or SiLU with squeeze and excitation by sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Family:
    """What networks of one kind share: activation, activation of the gates, None for no gates.

    ``early`` is the activation of stages that do not say otherwise.
    """

    active: type[nn.Module]
    early: type[nn.Module]
    gate: type[nn.Module] | None


FAMILIES: Mapping[str, Family] = {
    "mobilenetv2": Family(active=nn.ReLU6, early=nn.ReLU6, gate=None),
    "mobilenetv3": Family(active=nn.Hardswish, early=nn.ReLU, gate=nn.Hardsigmoid),
    "efficientnet": Family(active=nn.SiLU, early=nn.SiLU, gate=nn.Sigmoid),
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One inverted residual: kernel, expanded and output channels, stride, and what is in it."""

    kernel: int
    expanded: int
    outputs: int
    stride: int = 1
    squeezes: bool = False
    early: bool = False


STAGES = (
    Stage(kernel=3, expanded=32, outputs=16, early=True),
    Stage(kernel=3, expanded=64, outputs=24, stride=2, early=True),
    Stage(kernel=3, expanded=72, outputs=24, early=True),
    Stage(kernel=5, expanded=96, outputs=40, stride=2, squeezes=True),
    Stage(kernel=5, expanded=160, outputs=40, squeezes=True),
    Stage(kernel=5, expanded=160, outputs=40, squeezes=True),
    Stage(kernel=3, expanded=240, outputs=64, stride=2, squeezes=True),
    Stage(kernel=3, expanded=256, outputs=64, squeezes=True),
)


class Squeeze(nn.Module):
    """Squeeze and excitation: channels weighed by a gate of their means."""

    def __init__(self, channels: int, active: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.active = active()
        self.expand = nn.Conv2d(channels // 4, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.expand(self.active(self.reduce(means))))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, weigh channels, project; the input is added where it fits."""

    def __init__(self, inputs: int, stage: Stage, family: Family) -> None:
        super().__init__()
        active = family.early if stage.early else family.active
        middle = stage.expanded
        self.expand = _normed(inputs, middle, 1)
        self.spatial = _normed(middle, middle, stage.kernel, stage.stride, groups=middle)
        self.active = active()
        gates = family.gate is not None and stage.squeezes
        self.squeeze = _squeeze(middle, family) if gates else nn.Identity()
        self.project = _normed(middle, stage.outputs, 1)
        self.adds = stage.stride == 1 and inputs == stage.outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.active(self.spatial(self.active(self.expand(x))))
        y = self.project(self.squeeze(y))
        return x + y if self.adds else y


class MobileNet(nn.Module):
    """Stem, stages, head; images of 16×16 or more in ten classes."""

    def __init__(
        self,
        family: Family,
        channels: int = 1,
        stages: tuple[Stage, ...] = STAGES,
        width: int = 16,
        stride: int = 1,
    ) -> None:
        super().__init__()
        active = family.active
        self.stem = nn.Sequential(_normed(channels, width, 3, stride), active())
        widths = [width, *(stage.outputs for stage in stages)]
        blocks = [InvertedResidual(w, s, family) for w, s in zip(widths, stages, strict=False)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(_normed(widths[-1], 256, 1), active())
        self.head = nn.Sequential(nn.Linear(256, 192), active(), nn.Linear(192, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def _squeeze(channels: int, family: Family) -> Squeeze:
    assert family.gate is not None
    inner = nn.ReLU if family.gate is nn.Hardsigmoid else family.active
    return Squeeze(channels, inner, family.gate)


def _normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))

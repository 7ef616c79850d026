"""A network like MobileNet-V3 for 32×32 images, and its training in minutes on a CPU.

Inverted residuals, depthwise 3×3 and 5×5, hardswish, squeeze and excitation with hardsigmoid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from shared_nets import SharedNet, data_folder
from torch import Tensor, nn

_TRAINED = 4000  # of the 5,000 images of the test file; the others are evaluated on
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One inverted residual: kernel, expanded and output channels, stride, and what is in it."""

    kernel: int
    expanded: int
    outputs: int
    stride: int = 1
    squeezes: bool = False
    hardswish: bool = True


STAGES = (
    Stage(kernel=3, expanded=32, outputs=16, hardswish=False),
    Stage(kernel=3, expanded=64, outputs=24, stride=2, hardswish=False),
    Stage(kernel=3, expanded=72, outputs=24, hardswish=False),
    Stage(kernel=5, expanded=96, outputs=40, stride=2, squeezes=True),
    Stage(kernel=5, expanded=160, outputs=40, squeezes=True),
    Stage(kernel=5, expanded=160, outputs=40, squeezes=True),
    Stage(kernel=3, expanded=240, outputs=64, stride=2, squeezes=True),
    Stage(kernel=3, expanded=256, outputs=64, squeezes=True),
)


class Squeeze(nn.Module):
    """Squeeze and excitation: channels weighed by a hardsigmoid of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(means))))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, weigh channels, project; the input is added where it fits."""

    def __init__(self, inputs: int, stage: Stage) -> None:
        super().__init__()
        active: type[nn.Module] = nn.Hardswish if stage.hardswish else nn.ReLU
        middle = stage.expanded
        self.expand = _normed(inputs, middle, 1)
        self.spatial = _normed(middle, middle, stage.kernel, stage.stride, groups=middle)
        self.active = active()
        self.squeeze = Squeeze(middle) if stage.squeezes else nn.Identity()
        self.project = _normed(middle, stage.outputs, 1)
        self.adds = stage.stride == 1 and inputs == stage.outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.active(self.spatial(self.active(self.expand(x))))
        y = self.project(self.squeeze(y))
        return x + y if self.adds else y


class MobileNet(nn.Module):
    """Stem, stages, head; 32×32 images in ten classes."""

    def __init__(self, stages: tuple[Stage, ...] = STAGES, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(_normed(3, width, 3), nn.Hardswish())
        widths = [width, *(stage.outputs for stage in stages)]
        blocks = [InvertedResidual(w, s) for w, s in zip(widths, stages, strict=False)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(_normed(widths[-1], 256, 1), nn.Hardswish())
        self.head = nn.Sequential(nn.Linear(256, 192), nn.Hardswish(), nn.Linear(192, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


def _normed(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _images(values: np.ndarray) -> Tensor:
    images = torch.from_numpy(values).float().permute(0, 3, 1, 2) / 255
    return (images - torch.tensor(_MEAN).view(-1, 1, 1)) / torch.tensor(_STD).view(-1, 1, 1)


@dataclass(frozen=True, kw_only=True)
class Data:
    """CIFAR-10 images that are trained on, calibrated with, and evaluated on."""

    train: Tensor
    train_labels: Tensor
    calibration: Tensor
    calibration_labels: Tensor
    test: Tensor
    test_labels: Tensor


def read_data() -> Data:
    """Return 5,024 images for training, 1,024 of them for calibration, and 1,000 others."""
    folder = data_folder()
    given, more = np.load(folder / "cifar10_calib_a.npz"), np.load(folder / "cifar10_test_a.npz")
    images = [_images(stored["images"]) for stored in (given, more)]
    labels = [torch.from_numpy(stored["labels"]).long() for stored in (given, more)]
    return Data(
        train=torch.cat([images[0], images[1][:_TRAINED]]),
        train_labels=torch.cat([labels[0], labels[1][:_TRAINED]]),
        calibration=images[0],
        calibration_labels=labels[0],
        test=images[1][_TRAINED:],
        test_labels=labels[1][_TRAINED:],
    )


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image or not, and cut it out of its padded self."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    padded = F.pad(images, (4, 4, 4, 4))
    corners = torch.randint(9, (len(images), 2), generator=generator).tolist()
    cut = [image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(padded, corners, strict=True)]
    return torch.stack(cut)


def train(model: nn.Module, data: Data, epochs: int, seed: int = 0, first: int = 0) -> float:
    """Train on labels by SGD with one cosine of the rate; return the last epoch's loss.

    Epochs before ``first`` are left out: they were done before.
    """
    generator = torch.Generator().manual_seed(seed + first)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    model.train()
    loss = torch.tensor(0.0)
    for epoch in range(first, epochs):
        order = torch.randperm(len(data.train), generator=generator).split(64)
        for step, chosen in enumerate(order):
            done = (epoch + step / len(order)) / epochs
            warm = min(1.0, (epoch * len(order) + step + 1) / len(order))
            optimizer.param_groups[0]["lr"] = 0.08 * warm * (1 + math.cos(math.pi * done)) / 2
            images = _augmented(data.train[chosen], generator)
            loss = F.cross_entropy(model(images), data.train_labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.eval()
    return float(loss.detach())


def trained_net(epochs: int = 25, calibration: int = 256, seed: int = 0) -> SharedNet:
    """Train a network; return it with 256 images for calibration and 1,000 for evaluation."""
    torch.manual_seed(seed)
    data, model = read_data(), MobileNet()
    train(model, data, epochs, seed)
    return as_net(model, data, calibration)


def as_net(model: nn.Module, data: Data, calibration: int = 256) -> SharedNet:
    """Return a trained network with its data."""
    return SharedNet(
        name="mobilenetv3-like",
        model=model.eval(),
        calibration=data.calibration[:calibration],
        calibration_labels=data.calibration_labels[:calibration],
        images=data.test,
        labels=data.test_labels,
    )

"""A network like MobileNet-V3, and its training on handwritten digits in a minute on a CPU.

Inverted residuals, depthwise 3×3 and 5×5, hardswish, squeeze and excitation with hardsigmoid. The
1,797 digits of scikit-learn, 8×8, are enlarged to 16×16; 1,297 are trained on, 500 evaluated on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from shared_nets import SharedNet
from sklearn.datasets import load_digits
from torch import Tensor, nn

_TRAINED = 1297
_SIZE = 16


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
    """Stem, stages, head; 16×16 images in ten classes."""

    def __init__(self, stages: tuple[Stage, ...] = STAGES, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(_normed(1, width, 3), nn.Hardswish())
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


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images and labels to train on, and to evaluate with."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def read_data() -> Data:
    """Return the digits in a random order, float32 [B, 1, 16, 16] of mean 0 and deviation 1."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None]
    images = F.interpolate((images - images.mean()) / images.std(), size=_SIZE, mode="bilinear")
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:_TRAINED], order[_TRAINED:]
    return Data(
        train=images[train],
        train_labels=labels[train],
        test=images[test],
        test_labels=labels[test],
    )


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by up to two pixels."""
    padded = F.pad(images, (2, 2, 2, 2), value=float(images.min()))
    corners = torch.randint(5, (len(images), 2), generator=generator).tolist()
    parts = zip(padded, corners, strict=True)
    return torch.stack([image[:, y : y + _SIZE, x : x + _SIZE] for image, (y, x) in parts])


def train(model: nn.Module, data: Data, epochs: int, seed: int = 0) -> None:
    """Train on labels by SGD with one cosine of the rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = epochs * math.ceil(len(data.train) / 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train), generator=generator).split(64):
            images = _augmented(data.train[chosen], generator)
            loss = F.cross_entropy(model(images), data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def trained_net(epochs: int = 15, calibration: int = 256, seed: int = 0) -> SharedNet:
    """Train a network; return it with training images for calibration, and 500 others."""
    torch.manual_seed(seed)
    data, model = read_data(), MobileNet()
    train(model, data, epochs, seed)
    return SharedNet(
        name="mobilenetv3-like",
        model=model,
        calibration=data.train[:calibration],
        calibration_labels=data.train_labels[:calibration],
        images=data.test,
        labels=data.test_labels,
    )

"""Training of small mobile networks in minutes on one core.

``digits``: the 1,797 digits of scikit-learn, 8×8, enlarged to 16×16; 1,297 are trained on, 500
evaluated on, 256 of those trained on calibrate. ``cifar``: 4,000 of the CIFAR test images of
``MPQ_DATA`` are trained on, the other 1,000 evaluated on; 512 images of its calibration set
calibrate. Where ``MPQ_TRAINED`` names a folder, weights are kept there for the next run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mobile_net import FAMILIES, MobileNet
from safetensors.torch import load_file, save_file
from shared_nets import SharedNet, data_folder
from sklearn.datasets import load_digits
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images, float32 [B, C, H, W] of mean 0 and deviation 1, with labels; and how to train."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    calibration: Tensor
    calibration_labels: Tensor
    epochs: int
    flips: bool


def digits() -> Data:
    """Return the digits in a random order."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None]
    images = F.interpolate((images - images.mean()) / images.std(), size=16, mode="bilinear")
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return Data(
        train=images[train],
        train_labels=labels[train],
        test=images[test],
        test_labels=labels[test],
        calibration=images[train][:256],
        calibration_labels=labels[train][:256],
        epochs=15,
        flips=False,
    )


def cifar() -> Data:
    """Return CIFAR images; those that calibrate are in neither of the other parts."""
    images, labels = _cifar_file("cifar10_test_a.npz")
    calibration, calibration_labels = _cifar_file("cifar10_calib_a.npz")
    return Data(
        train=images[:4000],
        train_labels=labels[:4000],
        test=images[4000:],
        test_labels=labels[4000:],
        calibration=calibration[:512],
        calibration_labels=calibration_labels[:512],
        epochs=20,
        flips=True,
    )


def _cifar_file(name: str) -> tuple[Tensor, Tensor]:
    stored = np.load(data_folder() / name)
    images = torch.from_numpy(stored["images"]).float().permute(0, 3, 1, 2)
    mean = torch.tensor([125.3, 123.0, 113.9])[:, None, None]
    deviation = torch.tensor([63.0, 62.1, 66.7])[:, None, None]
    return (images - mean) / deviation, torch.from_numpy(stored["labels"]).long()


DATA: Mapping[str, Callable[[], Data]] = {"digits": digits, "cifar": cifar}


def _augmented(images: Tensor, data: Data, generator: torch.Generator) -> Tensor:
    """Move each image by an eighth of its side at most; mirror half of them where that is right."""
    side = images.shape[-1]
    reach = side // 8
    padded = F.pad(images, (reach,) * 4, value=float(images.min()))
    corners = torch.randint(2 * reach + 1, (len(images), 2), generator=generator).tolist()
    parts = zip(padded, corners, strict=True)
    moved = torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in parts])
    if not data.flips:
        return moved
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], moved.flip(-1), moved)


def train(model: nn.Module, data: Data, seed: int = 0) -> None:
    """Train on labels by SGD with one cosine of the rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = data.epochs * math.ceil(len(data.train) / 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(data.epochs):
        for chosen in torch.randperm(len(data.train), generator=generator).split(64):
            images = _augmented(data.train[chosen], data, generator)
            loss = F.cross_entropy(model(images), data.train_labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def trained_net(family: str, dataset: str = "digits", seed: int = 0) -> SharedNet:
    """Train a network of ``FAMILIES`` on a set of ``DATA``, or read what was trained before."""
    torch.manual_seed(seed)
    data = DATA[dataset]()
    channels, side = data.train.shape[1], data.train.shape[-1]
    model = MobileNet(FAMILIES[family], channels, stride=2 if side > 16 else 1)
    folder = os.environ.get("MPQ_TRAINED")
    path = Path(folder, f"{family}-{dataset}-{seed}.safetensors") if folder else None
    if path is not None and path.is_file():
        model.load_state_dict(load_file(path))
    else:
        train(model, data, seed)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(model.state_dict(), path)
    return SharedNet(
        name=f"{family}-{dataset}",
        model=model.eval(),
        calibration=data.calibration,
        calibration_labels=data.calibration_labels,
        images=data.test,
        labels=data.test_labels,
    )

"""The four pretrained networks and their data, from ``MPQ_DATA`` (default ``../shared/data``)."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

# What a benchmark times is done, not remembered from the last run.
os.environ.setdefault("MPQ_EVALUATIONS", "0")
ROOT = Path(__file__).resolve().parents[1]
NAMES = ("resnet20", "resnet32", "squeezenet", "dscnn")


@dataclass(frozen=True, kw_only=True)
class SharedNet:
    """A pretrained network with labelled inputs for calibration and for evaluation."""

    name: str
    model: nn.Module
    calibration: Tensor
    calibration_labels: Tensor
    images: Tensor
    labels: Tensor

    @property
    def example(self) -> Tensor:
        """One input."""
        return self.calibration[:1]


def data_folder() -> Path:
    """Return the folder of networks and data; it may be absent."""
    return Path(os.environ.get("MPQ_DATA", ROOT.parent / "shared" / "data"))


def _module(name: str) -> ModuleType:
    """Import a module of the data folder; its own imports are looked up there."""
    folder = str(data_folder())
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location(f"shared_{name}", f"{folder}/{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


def load_net(name: str, evaluation: int | None = None, calibration: int = 256) -> SharedNet:
    """Load a network: CIFAR has its own calibration set, the others give up their first 100.

    Args:
        name: One of ``NAMES``.
        evaluation: Number of evaluation samples; None for 1,000 (CIFAR) or 400.
        calibration: Number of calibration samples of CIFAR, 1,024 at most.
    """
    models, evaluate = _module("models"), _module("evaluate")
    folder = data_folder()
    if name.startswith("resnet"):
        model = evaluate.build(
            lambda: models.CifarResNet(int(name[6:])), f"{folder}/{name}.safetensors"
        )
        stored = np.load(folder / "cifar10_calib_a.npz")
        samples = models.prep_cifar(stored["images"][:calibration])
        calibration_labels = stored["labels"][:calibration]
        test = np.load(folder / "cifar10_test_a.npz")
        count = evaluation or 1000
        images = models.prep_cifar(test["images"][:count])
        labels = test["labels"][:count]
    elif name == "squeezenet":
        model = evaluate.build(models.SqueezeNet11, f"{folder}/squeezenet_v1.1.safetensors")
        raw, labels = evaluate.jpegs(f"{folder}/imagenet_sample_even.npz", 227)
        images = models.prep_squeezenet(raw)
        calibration_labels = labels[:100]
        samples, images, labels = _split(images, labels, evaluation)
    else:
        model = evaluate.build(models.DSCNN, f"{folder}/kws_dscnn.safetensors")
        stored = np.load(folder / "kws_mfcc_a.npz")
        images = evaluate.kws_prep(stored)(stored["mfcc_int8"])
        calibration_labels = stored["labels"][:100]
        samples, images, labels = _split(images, stored["labels"], evaluation)
    return SharedNet(
        name=name,
        model=model,
        calibration=samples,
        calibration_labels=_labels(calibration_labels),
        images=images,
        labels=_labels(labels),
    )


def _labels(values: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(values)).long()


def _split(
    images: Tensor, labels: np.ndarray, evaluation: int | None
) -> tuple[Tensor, Tensor, np.ndarray]:
    end = None if evaluation is None else 100 + evaluation
    return images[:100], images[100:end], labels[100:end]


def top1(scores: Tensor, labels: Tensor) -> Tensor:
    """Return which samples are right, bool [B]."""
    return scores.flatten(1).argmax(1) == labels


def paired_standard_error(right: Tensor, right_float: Tensor) -> float:
    """Return the standard error of the difference of two accuracies on the same samples, in %."""
    difference = right.double() - right_float.double()
    return 100.0 * float(difference.std() / len(difference) ** 0.5)

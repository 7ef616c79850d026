"""The real networks and data that benchmarks and tests measure on; nothing of them is stored here.

They are read from ``MPQ_DATA``, by default the folder ``shared/data`` beside the repository.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(
    os.environ.get("MPQ_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
).resolve()
SQUEEZENET_SIZE = 227
# SqueezeNet and DS-CNN have no training data here: their first samples calibrate.
HELD_BACK = 100


@dataclass(frozen=True, kw_only=True)
class RealNet:
    """A trained network with its data.

    Args:
        model: In eval mode.
        calibration: Samples that choose ranges, prepared.
        samples: Samples that are evaluated, as stored: [N, ...].
        labels: int [N].
        prepare: From stored samples to the model's input.
    """

    model: nn.Module
    calibration: Tensor
    samples: np.ndarray
    labels: np.ndarray
    prepare: Callable[[np.ndarray], Tensor]

    @property
    def example(self) -> Tensor:
        """One sample: the shape that is deployed."""
        return self.calibration[:1]

    def inputs(self, start: int, stop: int) -> Tensor:
        """Return evaluation samples, prepared."""
        return self.prepare(self.samples[start:stop])


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_models", DATA / "models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _trained(model: nn.Module, name: str) -> nn.Module:
    # Counters of batch norms are not stored; everything else must be.
    outcome = model.load_state_dict(load_file(DATA / f"{name}.safetensors"), strict=False)
    missing = [key for key in outcome.missing_keys if not key.endswith("num_batches_tracked")]
    assert not missing and not outcome.unexpected_keys
    return model.eval()


def _resnet(depth: int) -> RealNet:
    models = _module()
    calibration = np.load(DATA / "cifar10_calib_a.npz")["images"][:256]
    test = np.load(DATA / "cifar10_test_a.npz")
    return RealNet(
        model=_trained(models.CifarResNet(depth), f"resnet{depth}"),
        calibration=models.prep_cifar(calibration),
        samples=test["images"],
        labels=test["labels"].astype(int),
        prepare=models.prep_cifar,
    )


def _squeezenet() -> RealNet:
    models = _module()
    images, labels = _decoded(DATA / "imagenet_sample_even.npz")
    return RealNet(
        model=_trained(models.SqueezeNet11(), "squeezenet_v1.1"),
        calibration=models.prep_squeezenet(images[:HELD_BACK]),
        samples=images[HELD_BACK:],
        labels=labels[HELD_BACK:],
        prepare=models.prep_squeezenet,
    )


def _decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    stored = np.load(path)
    offsets, data = stored["offsets"], stored["jpeg"]
    spans = zip(offsets, offsets[1:], strict=False)
    images = [np.asarray(Image.open(io.BytesIO(data[a:b].tobytes()))) for a, b in spans]
    edge = (images[0].shape[0] - SQUEEZENET_SIZE) // 2
    span = slice(edge, edge + SQUEEZENET_SIZE)
    return np.ascontiguousarray(np.stack(images)[:, span, span]), stored["labels"].astype(int)


def _keywords() -> RealNet:
    models = _module()
    stored = np.load(DATA / "kws_mfcc_a.npz")
    scale, zero_point = np.float32(stored["scale"]), int(stored["zero_point"])

    def prepare(codes: np.ndarray) -> Tensor:
        return torch.from_numpy((codes.astype(np.float32) - zero_point) * scale)[:, None]

    return RealNet(
        model=_trained(models.DSCNN(), "kws_dscnn"),
        calibration=prepare(stored["mfcc_int8"][:HELD_BACK]),
        samples=stored["mfcc_int8"][HELD_BACK:],
        labels=stored["labels"][HELD_BACK:].astype(int),
        prepare=prepare,
    )


NETS: Mapping[str, Callable[[], RealNet]] = {
    "resnet20": cache(lambda: _resnet(20)),
    "resnet32": cache(lambda: _resnet(32)),
    "squeezenet": cache(_squeezenet),
    "dscnn": cache(_keywords),
}


def correct(
    network: Callable[..., Any], net: RealNet, count: int | None = None, batch: int = 50
) -> np.ndarray:
    """Return which of the first ``count`` samples ``network`` classifies rightly, bool [N]."""
    total = len(net.samples) if count is None else count
    found = []
    with torch.no_grad():
        for start in range(0, total, batch):
            logits = network(net.inputs(start, min(start + batch, total)))
            found.append(logits.flatten(1).argmax(1).numpy())
    return np.concatenate(found) == net.labels[:total]


def paired_drop(exact: np.ndarray, quantized: np.ndarray) -> tuple[float, float]:
    """Return the drop of top-1 and its paired standard error, both in per cent."""
    change = exact.astype(float) - quantized.astype(float)
    return 100 * change.mean(), 100 * change.std() / np.sqrt(len(change))


def stored_bytes(network: Any) -> float:
    """Return what the weights of a compiled network should take: bits/8 + scales + biases."""
    total = 0.0
    for site in network.manifest.sites.values():
        scales = site.shape[0] if site.kind == "int" else 0
        total += np.prod(site.shape) * site.bits / 8 + 4 * scales + 4 * site.shape[0] * site.has_bias
    return total

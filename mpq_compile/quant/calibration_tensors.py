"""A calibration as plain data: JSON and tensors, exactly, so that another process has the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.observers import Histogram
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight
from mpq_compile.types import QSpec


def packed(calibration: Calibration) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a calibration as JSON data and tensors; what ranges of fewer samples say stays out."""
    names = list(calibration.histograms)
    histograms = [calibration.histograms[name] for name in names]
    weights, fits = list(calibration.weights), list(calibration.fits)
    described = {
        "observer": calibration.observer,
        "chosen": sorted(calibration.chosen.items()),
        "samples": calibration.samples,
        "nodes": names,
        "weights": [[site, asdict(spec)] for site, spec in weights],
        "fits": [[site, asdict(spec)] for site, spec in fits],
    }
    ranges = [[h.minimum, h.maximum, h.low, h.width] for h in histograms]
    tensors = {
        "ranges": torch.tensor(ranges, dtype=torch.float64).reshape(-1, 4),
        "counts": torch.stack([torch.from_numpy(h.counts) for h in histograms]),
    }
    for number, where in enumerate(weights):
        tensors[f"codes{number}"] = calibration.weights[where].codes
        tensors[f"scale{number}"] = calibration.weights[where].scale
    for number, where in enumerate(fits):
        tensors[f"gain{number}"] = calibration.fits[where].gain
        tensors[f"shift{number}"] = calibration.fits[where].shift
    return described, tensors


def unpacked(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Calibration:
    """Return the calibration that ``packed`` described."""
    histograms = {
        name: Histogram(
            minimum=minimum, maximum=maximum, low=low, width=width, counts=counts.numpy()
        )
        for name, (minimum, maximum, low, width), counts in zip(
            described["nodes"], tensors["ranges"].tolist(), tensors["counts"], strict=True
        )
    }
    weights, fits = (
        [(site, QSpec(**spec)) for site, spec in described[kind]] for kind in ("weights", "fits")
    )
    return Calibration(
        histograms=histograms,
        observer=described["observer"],
        chosen={bits: observer for bits, observer in described["chosen"]},
        samples=described["samples"],
        weights={
            where: QuantizedWeight(
                codes=tensors[f"codes{n}"], scale=tensors[f"scale{n}"], spec=where[1]
            )
            for n, where in enumerate(weights)
        },
        fits={
            where: ChannelFit(gain=tensors[f"gain{n}"], shift=tensors[f"shift{n}"])
            for n, where in enumerate(fits)
        },
    )

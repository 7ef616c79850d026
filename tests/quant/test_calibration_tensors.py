"""A calibration that is packed and unpacked is the same, to the bit."""

from __future__ import annotations

import json

import torch

from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.calibration_tensors import packed, unpacked
from mpq_compile.quant.observers import Histogram
from mpq_compile.quant.weights import ChannelFit, quantize_weight
from mpq_compile.types import QSpec


def observed(scale: float) -> Histogram:
    histogram = Histogram()
    histogram.observe(torch.randn(100) * scale / 3)
    histogram.observe(torch.randn(100) * scale)
    return histogram


def test_packed_and_unpacked_is_the_same() -> None:
    torch.manual_seed(0)
    specs = [
        QSpec(bits=4, signed=True, symmetric=True, axis=0),
        QSpec(bits=3, signed=True, symmetric=True, axis=0, group_size=4),
    ]
    fit = ChannelFit(gain=torch.rand(5), shift=torch.randn(5))
    before = Calibration(
        histograms={"x": observed(1.0), "y": observed(1e-20)},
        observer="percentile",
        samples=7,
        chosen={8: "mse4"},
        weights={("fc", spec): quantize_weight(torch.randn(5, 8), spec) for spec in specs},
        fits={("fc", specs[1]): fit},
    )
    described, tensors = packed(before)
    after = unpacked(json.loads(json.dumps(described)), tensors)
    assert list(after.histograms) == ["x", "y"]
    for name in ("x", "y"):
        assert after.qparams(name, 4) == before.qparams(name, 4)
        assert (after.histograms[name].counts == before.histograms[name].counts).all()
        assert after.histograms[name].low == before.histograms[name].low
    assert after.weights.keys() == before.weights.keys() and after.fits.keys() == before.fits.keys()
    for where, weight in before.weights.items():
        assert torch.equal(after.weights[where].codes, weight.codes)
        assert torch.equal(after.weights[where].scale, weight.scale)
    assert torch.equal(after.fits["fc", specs[1]].shift, fit.shift)
    assert (after.observer, after.samples) == ("percentile", 7)
    assert after.chosen == {8: "mse4"} and after.observer_at(4) == "percentile"
    assert after.qparams("x", 8) == before.qparams("x", 8)
    coarse = before.observed_by("minmax")
    assert coarse.observer_at(8) == "minmax" and coarse.qparams("x", 4) != before.qparams("x", 4)

"""Observers: from the values a tensor took to the range that its codes cover."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from mpq_compile.errors import CalibrationError, nearest
from mpq_compile.types import QParams, QSpec

BINS = 2048
# What stands for an observer where the network's outputs choose among ``PROPOSED``, at each width:
# ``sensitivity.range_trials``.
AUTO = "auto"


@dataclass
class Histogram:
    """Running histogram of one tensor; its range doubles to hold what comes.

    ``counts`` covers [low, low + BINS · width). Memory is constant in the number of batches.
    """

    minimum: float = float("inf")
    maximum: float = float("-inf")
    low: float = 0.0
    width: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def observe(self, values: Tensor) -> None:
        """Add a batch of float values; what is not finite (a mask) has no place in a range."""
        flat = values.detach().reshape(-1).float()
        if flat.numel() == 0:
            return
        low, high = flat.min().item(), flat.max().item()
        if not (isfinite(low) and isfinite(high)):
            self.observe(flat[flat.isfinite()])
            return
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        if not self._covers(low, high):
            self._widen()
        if self.width > 0:
            index = ((flat - self.low) / self.width).long().clamp_(0, BINS - 1)
            self.counts += torch.bincount(index, minlength=BINS).numpy()

    def _covers(self, low: float, high: float) -> bool:
        return self.width > 0 and low >= self.low and high <= self.low + BINS * self.width

    def _widen(self) -> None:
        span = max(self.maximum - self.minimum, 1e-30)
        low, width = self.minimum - 0.01 * span, 1.02 * span / BINS
        counts = np.zeros(BINS, np.int64)
        if self.width > 0:
            centers = self.low + (np.arange(BINS) + 0.5) * self.width
            index = np.clip(((centers - low) / width).astype(np.int64), 0, BINS - 1)
            np.add.at(counts, index, self.counts)
        self.low, self.width, self.counts = low, width, counts

    def power(self) -> float:
        """Return the mean square of the values; the least positive number where all are zero."""
        weight = self.counts / max(self.counts.sum(), 1)
        return max(float((weight * self.centers() ** 2).sum()), 1e-30)

    def copy(self) -> Histogram:
        """Return what was seen so far."""
        return replace(self, counts=self.counts.copy())

    def centers(self) -> np.ndarray:
        """Return the middle of each bin, float64 [BINS]."""
        return self.low + (np.arange(BINS) + 0.5) * self.width


def affine_qparams(low: float, high: float, bits: int) -> QParams:
    """Return unsigned affine qparams of [low, high], widened to hold zero exactly.

    The zero point is 0 where ``low`` is not negative (after ReLU).
    """
    spec = QSpec(bits=bits, signed=False, symmetric=False)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / spec.qmax, 1e-20)))
    zero_point = int(np.clip(np.rint(-low / scale), 0, spec.qmax))
    return QParams(spec=spec, scale=scale, zero_point=zero_point)


def minmax_range(histogram: Histogram, bits: int) -> tuple[float, float]:
    """Cover all that was seen."""
    return histogram.minimum, histogram.maximum


def percentile_range(
    histogram: Histogram, bits: int, percentile: float = 99.99
) -> tuple[float, float]:
    """Cut off (100 − percentile) % of the values at each end."""
    cumulative = np.cumsum(histogram.counts) / max(histogram.counts.sum(), 1)
    tail = 1 - percentile / 100
    centers = histogram.centers()
    low = centers[int(np.searchsorted(cumulative, tail))]
    high = centers[min(int(np.searchsorted(cumulative, 1 - tail)), BINS - 1)]
    return max(low, histogram.minimum), min(high, histogram.maximum)


def _ends(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Return the clipping points that are tried at the low and at the high end."""
    fractions = np.linspace(1.0, 0.2, 41)
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    return [low * f for f in fractions], [high * f for f in fractions]


def _clips(histogram: Histogram) -> list[tuple[float, float]]:
    return list(zip(*_ends(histogram), strict=True))


def _dequantized(centers: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    qparams = affine_qparams(low, high, bits)
    codes = np.rint(centers / qparams.scale) + qparams.zero_point
    return (np.clip(codes, 0, qparams.spec.qmax) - qparams.zero_point) * qparams.scale


def noise(histogram: Histogram, span: tuple[float, float], bits: int, cut: float = 1.0) -> float:
    """Return the expected squared error of values whose codes cover ``span``.

    The error of what lies beyond the span and zero counts ``cut`` times.
    """
    centers, weight = histogram.centers(), histogram.counts / max(histogram.counts.sum(), 1)
    squares = (centers - _dequantized(centers, *span, bits)) ** 2
    beyond = (centers < min(span[0], 0.0)) | (centers > max(span[1], 0.0))
    return float((weight * squares * np.where(beyond, cut, 1.0)).sum())


def mse_range(histogram: Histogram, bits: int, cut: float = 1.0) -> tuple[float, float]:
    """Minimise the expected squared error Σ p(x) (x − q(x))² over clipping points of both ends.

    Both ends shrink together over 41 points, then each alone, in turns, until neither moves: the
    small lobe below zero of a hardswish, SiLU or GELU is kept where the tail above is cut.

    The error of what is cut off counts ``cut`` times. Errors of rounding have either sign and
    cancel in the sums that read the tensor; what is cut off has one sign, falls on the largest
    values and adds up, so that outputs see more of it than the tensor shows [derived].
    """

    def error(span: tuple[float, float]) -> float:
        return noise(histogram, span, bits, cut)

    best = min(_clips(histogram), key=error)
    if 0.0 in best:  # one end is zero, so that the other was searched alone
        return best
    lows, highs = _ends(histogram)
    before = None
    while best != before:
        before = best
        best = min((best, *((low, best[1]) for low in lows)), key=error)
        best = min((best, *((best[0], high) for high in highs)), key=error)
    return best


def entropy_range(histogram: Histogram, bits: int) -> tuple[float, float]:
    """Minimise the Kullback-Leibler divergence from the values to their codes."""
    centers = histogram.centers()
    p = histogram.counts / max(histogram.counts.sum(), 1)

    def divergence(span: tuple[float, float]) -> float:
        levels = _dequantized(centers, *span, bits)
        _, inverse = np.unique(levels, return_inverse=True)
        mass = np.bincount(inverse, weights=p)
        members = np.bincount(inverse, weights=(p > 0).astype(float))
        q = np.where(p > 0, mass[inverse] / np.maximum(members[inverse], 1), 1.0)
        q_inside = np.where((centers >= span[0]) & (centers <= span[1]), q, 1e-12)
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / np.maximum(q_inside[seen], 1e-12))).sum())

    return min(_clips(histogram), key=divergence)


OBSERVERS: Mapping[str, Callable[[Histogram, int], tuple[float, float]]] = {
    "minmax": minmax_range,
    "percentile": percentile_range,
    "mse": mse_range,
    "mse2": partial(mse_range, cut=2.0),
    "mse4": partial(mse_range, cut=4.0),
    "mse16": partial(mse_range, cut=16.0),
    "entropy": entropy_range,
}
# What ``AUTO`` chooses from. How much more a cut weighs at the outputs than in the tensor, from no
# more to nearly everything, is the network's.
PROPOSED = ("mse", "mse2", "mse4", "mse16", "minmax")


def check_observer(name: str, others: tuple[str, ...] = ()) -> None:
    """Raise ``CalibrationError`` for a name that is neither an observer nor one of ``others``."""
    known = (*others, *OBSERVERS)
    if name not in known:
        raise CalibrationError(
            f"unknown observer {name!r}",
            expected=", ".join(known),
            found=repr(name),
            remedy=nearest(name, known),
        )


def activation_qparams(histogram: Histogram, bits: int, observer: str = "mse") -> QParams:
    """Return the qparams of a tensor at ``bits`` from what was observed."""
    check_observer(observer)
    if histogram.minimum > histogram.maximum:
        raise CalibrationError("the tensor was never observed", remedy="give calibration data")
    low, high = OBSERVERS[observer](histogram, bits)
    return affine_qparams(low, high, bits)


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Round float values to the codes of ``qparams`` and back; float32 in and out."""
    zero_point = qparams.zero_point
    # In place: such tensors are large, and memory is what this costs.
    codes = (x * (1.0 / qparams.scale)).round_().add_(zero_point).clamp_(0, qparams.spec.qmax)
    return codes.sub_(zero_point).mul_(qparams.scale)

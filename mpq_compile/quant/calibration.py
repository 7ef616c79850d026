"""What calibration found: ranges of tensors with their qparams at any width, fits of channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from mpq_compile.errors import CalibrationError
from mpq_compile.quant.observers import Histogram, activation_qparams
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight
from mpq_compile.types import QParams, QSpec


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What the first samples showed: histograms of what sites read, by node name."""

    samples: int
    histograms: Mapping[str, Histogram] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration saw: one histogram a tensor, by node name of the float graph.

    By site and weight spec, ``weights`` holds roundings that were searched (``reconstruct``), where
    there are better ones than to nearest, and ``fits`` what was fitted to a site's rounded weights;
    ``biases`` holds whole biases, where they are given instead of fitted.
    ``prefixes``, shortest first, tell how much ranges still move. ``chosen`` holds the observer of
    a width in bits where another than ``observer`` was found better.
    """

    histograms: Mapping[str, Histogram]
    observer: str
    samples: int
    prefixes: tuple[Prefix, ...] = ()
    chosen: dict[int, str] = field(default_factory=dict)
    weights: dict[tuple[str, QSpec], QuantizedWeight] = field(default_factory=dict, repr=False)
    fits: dict[tuple[str, QSpec], ChannelFit] = field(default_factory=dict, repr=False)
    biases: dict[tuple[str, QSpec], Tensor] = field(default_factory=dict, repr=False)
    _cache: dict[tuple[str, int], QParams] = field(default_factory=dict, repr=False)

    def qparams(self, node: str, bits: int) -> QParams:
        """Return the qparams of a tensor at ``bits``.

        Raises:
            CalibrationError: Nothing is known of the tensor.
        """
        key = (node, bits)
        if key not in self._cache:
            if node not in self.histograms:
                raise _unknown(node, bits)
            observer = self.observer_at(bits)
            self._cache[key] = activation_qparams(self.histograms[node], bits, observer)
        return self._cache[key]

    def observer_at(self, bits: int) -> str:
        """Return the observer that makes ranges of ``bits``."""
        return self.chosen.get(bits, self.observer)

    def observed_by(self, observer: str) -> Calibration:
        """Return the same histograms with ranges by another observer, at any width."""
        return replace(self, observer=observer, chosen={}, _cache={})

    def with_qparams(self, found: Mapping[tuple[str, int], QParams]) -> Calibration:
        """Return a calibration with these qparams by (node, bits), whatever the histograms say."""
        return replace(self, _cache={**self._cache, **found})


def _unknown(node: str, bits: int) -> CalibrationError:
    return CalibrationError(
        "a tensor that is stored as codes has no range",
        where=node,
        expected=f"its scale and zero point at {bits} bits",
        found="none",
        remedy="add an encoding for it, or calibrate the network",
    )

"""What calibration found: the range of every tensor, and its qparams at any width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpq_compile.quant.observers import Histogram, activation_qparams
from mpq_compile.types import QParams


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration saw: one histogram a tensor, by node name of the float graph."""

    histograms: Mapping[str, Histogram]
    observer: str
    samples: int
    _cache: dict[tuple[str, int], QParams] = field(default_factory=dict, repr=False)

    def qparams(self, node: str, bits: int) -> QParams:
        """Return the qparams of a tensor at ``bits``."""
        key = (node, bits)
        if key not in self._cache:
            self._cache[key] = activation_qparams(self.histograms[node], bits, self.observer)
        return self._cache[key]

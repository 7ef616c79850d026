"""Fits of sites on disk, by what they follow from: code, network, weights and data.

A file holds the fit of one site and spec, so that other candidates add to what is there. Fits that
took no time are not written, and a folder that nobody used for a month goes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight
from mpq_compile.reconstruct.site_fit import SiteFit
from mpq_compile.sensitivity import checkpoint
from mpq_compile.types import QSpec

_FOLDERS = ("passes", "quant", "reconstruct", "sensitivity")


class KeptFits:
    """The fits of one network to some data.

    Args:
        network: The prepared network; its weights count.
        batches: The data; their labels do not count.

    Attributes:
        key: The hash of what all fits follow from.
    """

    def __init__(self, network: Network, batches: Sequence[Batch]) -> None:
        self.key = checkpoint.data_key(_FOLDERS, network, batches)
        self._folder = checkpoint.Checkpoint.open(self.key, "fits")
        self._number = {site.id: number for number, site in enumerate(network.sites)}
        self._start = time.perf_counter()
        self._unwritten: list[tuple[str, dict[str, Tensor]]] = []

    def load(self, site: str, start: QuantizedWeight) -> SiteFit | None:
        """Return the fit that starts at the nearest codes ``start``; None where none is kept."""
        found = self._folder.load(self._name(site, start.spec)) if self._folder else None
        if found is None or found.keys() != {"codes", "scale", "gain", "shift"}:
            return None
        return fit_of(found, start)

    def save(self, site: str, fit: SiteFit) -> None:
        """Keep a fit, as soon as all of them have taken long enough."""
        self._unwritten.append((self._name(site, fit[0].spec), tensors_of(fit)))
        if self._folder is None or time.perf_counter() - self._start < checkpoint.WORTH_S:
            return
        for name, values in self._unwritten:
            self._folder.keep(name, values)
        self._unwritten.clear()

    def _name(self, site: str, spec: QSpec) -> str:
        return f"{self._number[site]}-{spec_name(spec)}"


def spec_name(spec: QSpec) -> str:
    """Return a short name of a weight's spec: w4, w4g64."""
    return f"w{spec.bits}" if spec.group_size is None else f"w{spec.bits}g{spec.group_size}"


def tensors_of(fit: SiteFit) -> dict[str, Tensor]:
    """Return the tensors of a fit by name."""
    weight, channels = fit
    return {
        "codes": weight.codes,
        "scale": weight.scale,
        "gain": channels.gain,
        "shift": channels.shift,
    }


def fit_of(tensors: Mapping[str, Tensor], start: QuantizedWeight) -> SiteFit:
    """Return the fit with these tensors, in the spec of ``start``."""
    weight = replace(start, codes=tensors["codes"], scale=tensors["scale"])
    return weight, ChannelFit(gain=tensors["gain"], shift=tensors["shift"])

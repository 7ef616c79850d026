"""Fits of sites on disk, by what they follow from: code, network, weights and data.

A file holds the fit of one site and spec, so that other candidates add to what is there. Fits that
took no time are not written, and a folder that nobody used for a month goes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight
from mpq_compile.reconstruct.site_fit import SiteFit
from mpq_compile.sensitivity import checkpoint
from mpq_compile.types import QSpec

_FOLDERS = ("passes", "quant", "reconstruct")


class KeptFits:
    """The fits of one network to some data.

    Args:
        network: The prepared network; its weights count.
        batches: The data; their labels do not count.
    """

    def __init__(self, network: Network, batches: Sequence[Batch]) -> None:
        key = checkpoint.data_key(_FOLDERS, network, batches)
        self._folder = checkpoint.Checkpoint.open(key, "fits")
        self._number = {site.id: number for number, site in enumerate(network.sites)}
        self._start = time.perf_counter()
        self._unwritten: list[tuple[str, dict[str, Tensor]]] = []

    def load(self, site: str, start: QuantizedWeight) -> SiteFit | None:
        """Return the fit that starts at the nearest codes ``start``; None where none is kept."""
        found = self._folder.load(self._name(site, start.spec)) if self._folder else None
        if found is None or found.keys() != {"codes", "scale", "gain", "shift"}:
            return None
        weight = replace(start, codes=found["codes"], scale=found["scale"])
        return weight, ChannelFit(gain=found["gain"], shift=found["shift"])

    def save(self, site: str, fit: SiteFit) -> None:
        """Keep a fit, as soon as all of them have taken long enough."""
        weight, channels = fit
        arrays = {"codes": weight.codes, "scale": weight.scale}
        arrays |= {"gain": channels.gain, "shift": channels.shift}
        self._unwritten.append((self._name(site, weight.spec), arrays))
        if self._folder is None or time.perf_counter() - self._start < checkpoint.WORTH_S:
            return
        for name, values in self._unwritten:
            self._folder.keep(name, values)
        self._unwritten.clear()

    def _name(self, site: str, spec: QSpec) -> str:
        group = "" if spec.group_size is None else f"g{spec.group_size}"
        return f"{self._number[site]}-w{spec.bits}{group}"

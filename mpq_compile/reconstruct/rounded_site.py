"""What a search of roundings starts from and what it leaves: weight and bias of a site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network
from mpq_compile.passes.rounding import fitted_bias, fitted_weight
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight
from mpq_compile.types import Candidate

# Fewer samples say more of themselves than of the network's data.
FEWEST_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class RoundedSite:
    """Weight and bias of a site with integer weights.

    Args:
        weight: Codes and scales.
        shift: What is added to the float bias, float32 [N].
    """

    weight: QuantizedWeight
    shift: Tensor

    @classmethod
    def of(
        cls, network: Network, calibration: Calibration, site: str, candidate: Candidate
    ) -> RoundedSite:
        """Return what a site has now: the nearest codes with their fit, or what was searched."""
        bias = fitted_bias(network, calibration, site, candidate)
        return cls(
            weight=fitted_weight(network, calibration, site, candidate),
            shift=bias - network.bias(site),
        )

    def put(self, calibration: Calibration, site: str) -> None:
        """Make it what the site has."""
        key = site, self.weight.spec
        calibration.weights[key] = self.weight
        gain = torch.ones_like(self.shift)
        calibration.fits[key] = ChannelFit(gain=gain, shift=self.shift)


def searched_sites(network: Network, assignment: Mapping[str, str]) -> dict[str, Candidate]:
    """Return the sites whose roundings can be searched, with what they are assigned.

    Sites that share a weight share its codes: there is no one input to fit them to
    (:func:`shared_weights`).
    """
    tied = Counter(site.group for site in network.sites)
    alone = [site.id for site in network.sites if tied[site.group] == 1 and site.multiplies]
    candidates = {site: Candidate.parse(assignment[site]) for site in alone}
    return {site: candidate for site, candidate in candidates.items() if not candidate.is_float}


def shared_weights(
    network: Network, assignment: Mapping[str, str]
) -> dict[str, tuple[list[str], Candidate]]:
    """Return the integer weights that several sites multiply by, by their first site.

    Those that an embedding reads as well are left out: its rows count whatever is done with them.
    """
    readers: dict[str, list[str]] = {}
    embedded = {network.owner_of[site.id] for site in network.sites if not site.multiplies}
    for site, owner in network.scale_owner_of.items():
        if network.owner_of[site] not in embedded:
            readers.setdefault(owner, []).append(site)
    found = {}
    for owner, sites in readers.items():
        candidate = Candidate.parse(assignment[owner])
        if len(sites) > 1 and not candidate.is_float:
            found[owner] = sites, candidate
    return found


def check_samples(batches: Sequence[Batch], rounding: str) -> None:
    """Raise ``CalibrationError`` where there are fewer than 32 samples."""
    count = sum(len(batch.inputs[0]) if batch.inputs[0].dim() else 1 for batch in batches)
    if count < FEWEST_SAMPLES:
        raise CalibrationError(
            f"too few calibration samples to search roundings by {rounding!r}",
            expected=f"{FEWEST_SAMPLES} at least; 256 or more are better",
            found=str(count),
            remedy="give more samples, or take rounding='gptq' or 'nearest'",
        )


def check_finite(site: str, *values: Tensor) -> None:
    """Raise ``CalibrationError`` where a site saw or gave anything but finite numbers."""
    if not all(bool(value.isfinite().all()) for value in values):
        raise CalibrationError(
            "activations are not finite",
            where=site,
            expected="finite inputs and outputs on the calibration data",
            found="NaN or infinite values",
            remedy="look for samples, or for a layer, that overflow in float",
        )

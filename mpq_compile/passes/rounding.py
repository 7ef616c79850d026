"""Weight and bias of a site as a candidate has them: rounded, then fitted by channel."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import QuantizedWeight, weight_spec
from mpq_compile.types import Candidate


def rounded_weight(
    network: Network, calibration: Calibration, site_id: str, candidate: Candidate
) -> QuantizedWeight:
    """Return a site's rounded weight: what was searched for it, or the nearest codes."""
    found = calibration.weights.get((site_id, weight_spec(candidate)))
    return network.rounded(site_id, candidate) if found is None else found


def fitted_weight(
    network: Network, calibration: Calibration, site_id: str, candidate: Candidate
) -> QuantizedWeight:
    """Return a site's rounded weight, its scales times the gains that calibration found."""
    weight = rounded_weight(network, calibration, site_id, candidate)
    fit = calibration.fits.get((site_id, weight.spec))
    if fit is None:
        return weight
    gain = fit.gain if weight.scale.dim() == 1 else fit.gain[:, None]
    return replace(weight, scale=weight.scale * gain)


def fitted_bias(
    network: Network, calibration: Calibration, site_id: str, candidate: Candidate
) -> Tensor:
    """Return a site's bias, float32 [N], with the shift that calibration found."""
    bias = network.bias(site_id)
    if candidate.weight_bits >= 16:
        return bias
    given = calibration.biases.get((site_id, weight_spec(candidate)))
    if given is not None:
        return given
    fit = calibration.fits.get((site_id, weight_spec(candidate)))
    return bias if fit is None else bias + fit.shift

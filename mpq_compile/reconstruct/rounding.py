"""Better codes than the nearest ones, for the weights of one assignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.reconstruct.lockstep import MEMORY_MB, affordable
from mpq_compile.registry import ROUNDINGS
from mpq_compile.types import Candidate


def with_rounding(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str],
    rounding: str,
    memory_mb: float = MEMORY_MB,
) -> Calibration:
    """Return ``calibration`` with codes, scales and biases that ``rounding`` finds.

    Where all weights have 8 bits or more, it is returned as it is: there the nearest codes do.

    Args:
        network: The prepared network.
        calibration: Ranges, and fits for the assignment; left as it is.
        batches: Calibration data; as many samples are used as fit into memory.
        assignment: A candidate for every site.
        rounding: A name of ``ROUNDINGS``.
        memory_mb: What the activations of the float and the quantized network may take.

    Raises:
        MpqError: The name is unknown.
        CalibrationError: A site's activations are not finite.
    """
    search = ROUNDINGS.load(rounding)
    if all(Candidate.parse(name).weight_bits >= 8 for name in assignment.values()):
        return calibration
    found = replace(calibration, weights=dict(calibration.weights), fits=dict(calibration.fits))
    search(network, found, affordable(network, batches, memory_mb), assignment)
    return found


def keep_nearest(
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    assignment: Mapping[str, str],
) -> None:
    """Leave the nearest codes, with the gain and shift that were fitted to them."""

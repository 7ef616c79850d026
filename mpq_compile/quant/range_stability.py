"""Would more calibration data change the ranges of activations?"""

from __future__ import annotations

from collections.abc import Sequence

from mpq_compile.quant.calibration import Calibration, Prefix
from mpq_compile.quant.observers import OBSERVERS, noise

# More noise than this, 0.2 dB, is counted as a change.
TOLERANCE = 0.05
# Bits that ranges are judged at: fewer ask for narrower ones, which move less.
JUDGED_BITS = 8


def range_note(calibration: Calibration) -> str:
    """Say from how many samples on the ranges are what all samples make them."""
    total, prefixes = calibration.samples, calibration.prefixes
    if not prefixes:
        return f"whether ranges are stable cannot be told from one batch of {total} samples"
    excesses = [noise_excess(calibration, prefix) for prefix in prefixes]
    found = first_within([p.samples for p in prefixes], excesses, TOLERANCE)
    if found is not None:
        return (
            f"ranges are stable from {found} samples of {total}: rounding noise within "
            f"{TOLERANCE:.0%}"
        )
    return (
        f"ranges are not stable yet at {total} samples: rounding noise changes by "
        f"{excesses[-1]:.0%} from {prefixes[-1].samples} to all; give more"
    )


def noise_excess(calibration: Calibration, prefix: Prefix) -> float:
    """Return how much more noise the ranges of the first samples make, as a share.

    Noise is the expected squared error of 8-bit codes, by what all samples showed, over the mean
    square of the values; that is summed over what sites read. What a range covers too much or too
    little counts by what it costs, so that a flat optimum is no move [derived].
    """
    choose = OBSERVERS[calibration.observer_at(JUDGED_BITS)]
    early = late = 0.0
    for name, part in prefix.histograms.items():
        whole = calibration.histograms[name]
        if part.minimum > part.maximum:
            continue
        power = whole.power()
        early += noise(whole, choose(part, JUDGED_BITS), JUDGED_BITS) / power
        late += noise(whole, choose(whole, JUDGED_BITS), JUDGED_BITS) / power
    return abs(early / late - 1) if late > 0 else 0.0


def first_within(samples: Sequence[int], moved: Sequence[float], tolerance: float) -> int | None:
    """Return the first of ``samples`` from which on nothing moves by more than ``tolerance``."""
    found = None
    for count, move in zip(reversed(samples), reversed(moved), strict=True):
        if move > tolerance:
            break
        found = count
    return found

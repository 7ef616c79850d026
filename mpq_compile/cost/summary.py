"""From samples to a measurement: the median, how well it is known, and what lies far from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from mpq_compile.cost.measurement import Measurement, utc_now
from mpq_compile.cost.samples import Sample

_MISSES = 0.025  # on each side: an interval of 95 %
_WHISKER = 1.5


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the median that assumes no distribution.

    The k-th smallest of n values is above the median with probability P(Bin(n, ½) < k); the
    interval reaches from the k-th smallest to the k-th largest for the greatest k for which that
    is ≤ 2.5 % (David and Nagaraja, Order Statistics, 7.1). Fewer than six values are too few for
    that: then it is their range.
    """
    ordered = sorted(values)
    k = _rank(len(ordered))
    return ordered[k - 1], ordered[-k]


@cache
def _rank(count: int) -> int:
    below, k = 0.0, 0
    while True:
        below += math.comb(count, k) / 2**count
        if below > _MISSES:
            return max(k, 1)
        k += 1


def is_tight(values: Sequence[float], relative: float) -> bool:
    """Tell whether the median's interval is within ± ``relative`` of the median."""
    low, high = median_interval(values)
    return high - low <= 2 * relative * statistics.median(values)


def count_outliers(values: Sequence[float]) -> int:
    """Return how many values lie over 1.5 interquartile ranges beyond the quartiles (Tukey)."""
    if len(values) < 4:
        return 0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    reach = _WHISKER * (third - first)
    return sum(not first - reach <= value <= third + reach for value in values)


def summarize(samples: Sequence[Sample], *, repeated: int, settled: bool) -> Measurement:
    """Return the measurement of some samples; none of them is left out.

    Args:
        samples: At least one.
        repeated: Rounds of this kernel that are not among them.
        settled: Whether the reference was near its usual time in all of them.
    """
    return replace(
        measurement_of([sample.us for sample in samples]),
        clock_mhz=_median([sample.clock_mhz for sample in samples]),
        repeated=repeated,
        load=_median([sample.load for sample in samples]),
        reference_us=_median([us for s in samples for us in (s.before_us, s.after_us)]),
        settled=settled,
    )


def measurement_of(times_us: Sequence[float]) -> Measurement:
    """Return the measurement of times that ended now, nothing else being known of them."""
    low, high = median_interval(times_us)
    return Measurement(
        count=len(times_us),
        median_us=statistics.median(times_us),
        mean_us=statistics.fmean(times_us),
        variance=statistics.variance(times_us) if len(times_us) > 1 else 0.0,
        min_us=min(times_us),
        clock_mhz=None,
        time=utc_now(),
        low_us=low,
        high_us=high,
        outliers=count_outliers(times_us),
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None

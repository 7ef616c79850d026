"""Statistics of samples: the interval of the median, and what lies far from it."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq_compile.cost.measurement import utc_now
from mpq_compile.cost.samples import Sample
from mpq_compile.cost.summary import count_outliers, is_tight, median_interval, summarize

times = st.lists(st.floats(min_value=0.01, max_value=1e6), min_size=1, max_size=80)


@pytest.mark.parametrize("count", [6, 7, 9, 12, 15, 20, 40, 100, 1000])
def test_the_interval_covers_the_median_in_95_of_100_cases_and_no_narrower_one_does(
    count: int,
) -> None:
    low, high = median_interval([float(rank) for rank in range(1, count + 1)])
    assert low + high == count + 1

    def coverage(rank: int) -> float:
        """Of the interval from the rank-th smallest to the rank-th largest."""
        return sum(math.comb(count, k) for k in range(rank, count - rank + 1)) / 2**count

    assert coverage(int(low)) >= 0.95 > coverage(int(low) + 1)


def test_few_samples_tell_only_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([5.0]) == (5.0, 5.0)


@given(times)
def test_the_median_lies_within_its_interval(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high


def test_one_outlier_keeps_nine_samples_tight() -> None:
    values = [100.0, 100.2, 100.4, 100.6, 100.8, 101.0, 101.2, 101.4, 300.0]
    assert is_tight(values, 0.015)
    assert not is_tight(values, 0.001)
    assert not is_tight([*values[:6], 300.0], 0.015)  # of seven the interval is the range


def test_outliers_are_counted_on_both_sides() -> None:
    values = [10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 10.6]
    assert count_outliers(values) == 0
    assert count_outliers([*values, 20.0, 1.0]) == 2
    assert count_outliers([1.0, 100.0]) == 0


def sample(us: float, number: int) -> Sample:
    return Sample(
        round=number, us=us, before_us=20.0, after_us=21.0, clock_mhz=2000.0 + number, load=None,
        time=utc_now(), kept=True,
    )  # fmt: skip


@given(times)
def test_every_sample_counts(values: list[float]) -> None:
    samples = [sample(us, number) for number, us in enumerate(values)]
    found = summarize(samples, repeated=3, settled=False)
    assert found.count == len(values)
    assert (found.median_us, found.min_us) == (statistics.median(values), min(values))
    assert (found.low_us, found.high_us) == median_interval(values)
    assert found.outliers == count_outliers(values)
    assert (found.repeated, found.settled, found.load) == (3, False, None)
    assert found.reference_us == 20.5
    assert found.clock_mhz == statistics.median(s.clock_mhz or 0 for s in samples)

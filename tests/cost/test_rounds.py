"""Rounds: enough of them, none lost, and none averaged in that was taken in an unusual time."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from pathlib import Path

import pytest
from devices import FEW_ROUNDS, REFERENCE_S, Scripted, Waves, steady, tasks

from mpq_compile.cost.drift import REFERENCE
from mpq_compile.cost.keys import key_of
from mpq_compile.cost.measure import measure
from mpq_compile.cost.measurement import Measurement
from mpq_compile.cost.rounds import Precision
from mpq_compile.cost.samples import Sample
from mpq_compile.cost.store import Store
from mpq_compile.errors import TimeRanOutError
from mpq_compile.runtime.device import LocalDevice
from mpq_compile.runtime.kernel_timing import Task

ONE = tasks(1)
KEY = key_of(ONE[0], Scripted())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite"


def taken(path: Path) -> list[Sample]:
    with Store(path) as store:
        return store.samples([KEY])[KEY]


def measured(path: Path, device: LocalDevice, precision: Precision, **options: bool) -> Measurement:
    with Store(path) as store:
        measure(ONE, store, device, precision=precision, **options)
        found = store.get(KEY)
    assert found is not None
    return found


def test_real_kernels_on_this_machine(path: Path) -> None:
    found = measured(path, LocalDevice(), Precision())
    assert found.low_us is not None and found.high_us is not None
    assert found.low_us <= found.median_us <= found.high_us
    assert found.count >= Precision().least
    assert len(taken(path)) == found.count + (found.repeated or 0) * found.settled
    with Store(path) as store:
        assert store.get(key_of(REFERENCE, LocalDevice())) is not None


def test_steady_times_need_the_least_rounds(path: Path) -> None:
    found = measured(path, Scripted(), Precision(least=4))
    assert (found.count, found.repeated, found.settled) == (4, 0, True)
    assert found.half_width == 0.0


def test_uncertain_kernels_are_timed_longer(path: Path) -> None:
    wide = itertools.cycle([8e-6, 9e-6, 10e-6, 11e-6, 12e-6])

    def seconds(task: Task) -> float:
        return next(wide) if task == ONE[0] else steady(task)

    others = tasks(2)
    with Store(path) as store:
        found = measure(others, store, Scripted(seconds), precision=Precision(least=4, most=15))
    counts = [found[task.workload.key].count for task in others]
    assert counts == [15, 4]


def test_long_kernels_get_a_second(path: Path) -> None:
    long = itertools.cycle([0.1, 0.2])

    def seconds(task: Task) -> float:
        return next(long) if task != REFERENCE else REFERENCE_S

    found = measured(path, Scripted(seconds), Precision(least=3, most=40))
    assert 3 <= found.count <= 8


def test_rounds_of_a_slow_moment_are_repeated_and_left_out(path: Path) -> None:
    waves = Waves(first=20, last=29, factor=3.0)
    found = measured(path, Scripted(waves), FEW_ROUNDS)
    slow = [sample for sample in taken(path) if sample.us > 20.0]
    assert [s.us for s in slow] == pytest.approx(waves.slow)
    assert slow and not any(sample.kept for sample in slow)
    kept = [sample.us for sample in taken(path) if sample.kept]
    assert found.median_us == statistics.median(kept) == pytest.approx(10.0, rel=1e-3)
    assert (found.count, found.settled) == (5, True)
    assert found.repeated == len(taken(path)) - 5 >= len(slow)


def test_a_device_that_stays_slow_is_not_believed(path: Path) -> None:
    measured(path, Scripted(), FEW_ROUNDS)
    with Store(path) as store:  # the kernel again, under another name
        other = dataclasses.replace(ONE[0], operator="other")
        slow = Scripted(lambda task: 2 * steady(task))
        found = measure([other], store, slow, precision=FEW_ROUNDS)[other.workload.key]
        assert (found.settled, found.count, found.repeated) == (False, 6, 6)
        assert found.median_us == pytest.approx(20.0)
        assert found.reference_us == pytest.approx(40.0)

        # It is used as it is, and measured again where somebody asks for that.
        before = store.items()
        assert (
            measure([other], store, Scripted(), precision=FEW_ROUNDS)[other.workload.key] == found
        )
        assert store.items() == before
        found = measure([other], store, Scripted(), precision=FEW_ROUNDS, again=True)[
            other.workload.key
        ]
        assert (found.settled, found.count, found.repeated) == (True, 3, 6)
        assert found.median_us == pytest.approx(10.0)


def test_what_was_measured_in_a_slow_time_is_found_out_later(path: Path) -> None:
    slow = measured(path, Scripted(lambda task: 2 * steady(task)), FEW_ROUNDS)
    assert slow.settled  # nothing else was known
    with Store(path) as store:
        measure(tasks(2), store, Scripted(), precision=FEW_ROUNDS)
        measure(tasks(3), store, Scripted(), precision=FEW_ROUNDS)
    assert measured(path, Scripted(), FEW_ROUNDS) == slow
    again = measured(path, Scripted(), FEW_ROUNDS, again=True)
    assert (again.settled, again.median_us) == (True, pytest.approx(10.0))


def test_time_runs_out_between_rounds_and_nothing_is_lost(path: Path) -> None:
    with Store(path) as store:
        never = Precision(relative=0.0, least=10**6, most=10**6, kernel_s=1e9)
        with pytest.raises(TimeRanOutError):
            measure(ONE, store, Scripted(), precision=never, budget_s=3.0)
    before = taken(path)
    assert len(before) > 3
    found = measured(path, Scripted(), Precision(least=3, most=len(before)))
    assert taken(path) == before  # they were enough
    assert found.count == len(before)


def slowed(path: Path) -> Scripted:
    """Return a device that is slower than the database knows it, for good."""
    measured(path, Scripted(), Precision(relative=0.0, least=100, most=100))
    return Scripted(lambda task: 2 * steady(task))


def run_short(path: Path, left: list[Task], device: LocalDevice) -> bool:
    """Measure for as short a time as there is; tell whether nothing is left."""
    try:
        with Store(path) as store:
            measure(left, store, device, budget_s=1e-9, again=True)
    except TimeRanOutError:
        return False
    return True


def test_short_runs_wait_for_a_slow_device_no_longer_than_a_long_one(path: Path) -> None:
    slow = slowed(path)
    other = dataclasses.replace(ONE[0], operator="other")
    done = [run_short(path, [other], slow) for _ in range(3)]
    assert done == [False, False, True]  # seven rounds each, twenty at most are repeated
    with Store(path) as store:
        found = store.get(key_of(other, slow))
    assert found is not None
    assert (found.settled, found.count, found.repeated) == (False, 20, 20)
    assert found.reference_us == pytest.approx(40.0)


def test_short_runs_measure_what_is_missing_before_what_was_unsettled(path: Path) -> None:
    slow = slowed(path)
    many = [dataclasses.replace(task, operator="other") for task in tasks(8)]
    assert [run_short(path, many, slow) for _ in range(6)] == [False] * 5 + [True]


def test_repeats_of_an_unsettled_measurement_count_from_there_on(path: Path) -> None:
    slow = slowed(path)
    other = dataclasses.replace(ONE[0], operator="other")
    while not run_short(path, [other], slow):
        pass
    with Store(path) as store:
        measure([other], store, slow, again=True)
        found = store.get(key_of(other, slow))
    assert found is not None
    assert (found.settled, found.count) == (False, 2 * Precision().repeats)


def test_conditions_are_recorded(path: Path) -> None:
    found = measured(path, Scripted(), FEW_ROUNDS)
    conditions = Scripted().conditions()
    assert (found.clock_mhz is None) == (conditions.clock_mhz is None)
    assert (found.load is None) == (conditions.load is None)
    assert found.reference_us == pytest.approx(20.0)

"""What is usual for a device, told from the times of the reference workload."""

from __future__ import annotations

import dataclasses

from measurements import measured

from mpq_compile.cost.drift import LONG, NEAR, Usual


def test_a_machine_that_is_disturbed_most_of_the_time() -> None:
    usual = Usual([20.0] * 30 + [31.0] * 70)
    assert usual.us == 20.0
    assert usual.is_near(20.0, 20.0 * NEAR, 20.0 / NEAR)
    assert not usual.is_near(20.0, 31.0)
    assert not usual.is_near(20.0 / NEAR / 1.01)


def test_a_slow_moment_changes_nothing() -> None:
    usual = Usual([20.0] * 100)
    for _ in range(200):
        usual.add(40.0)
    assert usual.us == 20.0


def test_a_database_begun_in_a_slow_time_learns_better() -> None:
    usual = Usual([40.0] * 400)
    for _ in range(11):
        usual.add(20.0)
    assert usual.us == 20.0
    usual.add(40.0)
    assert usual.us == 20.0


def test_only_the_latest_looks_count() -> None:
    usual = Usual([20.0] * LONG)
    for _ in range(LONG):
        usual.add(40.0)
    assert usual.us == 40.0


def test_what_another_database_measured_is_where_to_begin() -> None:
    remembered = dataclasses.replace(measured(20.0), settled=True)
    assert Usual((), remembered).us == 20.0
    assert Usual([30.0], remembered).us == 30.0


def test_the_measurement_tells_what_is_usual() -> None:
    usual = Usual([20.0, 22.0, 21.0, 80.0, 90.0, 70.0])
    kept = usual.measurement()
    assert (kept.count, kept.median_us, kept.min_us) == (3, 21.0, 20.0)
    assert Usual((), kept).us == usual.us

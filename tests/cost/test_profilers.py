"""Processes that profile: killed, interrupted, two at once. Nothing is lost, nothing done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devices import LONG, Scripted, start, steady, tasks

from mpq_compile.cost.keys import key_of
from mpq_compile.cost.measure import measure
from mpq_compile.cost.measurement import MeasurementKey
from mpq_compile.cost.samples import Sample
from mpq_compile.cost.store import Store

KEYS = [key_of(task, Scripted()) for task in tasks()]
Samples = dict[MeasurementKey, list[Sample]]


def samples(database: Path) -> Samples:
    with Store(database) as store:
        return store.samples(KEYS)


def wait_for_rounds(profiler: subprocess.Popen[str], database: Path, count: int) -> None:
    """Wait until another process has stored ``count`` rounds."""
    end = time.monotonic() + 60
    while time.monotonic() < end and profiler.poll() is None:
        if database.exists() and len(samples(database)[KEYS[0]]) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"no {count} rounds: {profiler.communicate()}")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_and_continued(tmp_path: Path, number: signal.Signals) -> None:
    database = tmp_path / "m.sqlite"
    profiler = start(database, len(KEYS), tmp_path / "cache")
    wait_for_rounds(profiler, database, 5)
    profiler.send_signal(number)
    profiler.communicate(timeout=30)
    assert profiler.returncode != 0
    before = samples(database)
    assert 5 <= len(before[KEYS[0]]) < LONG.most
    assert len({len(found) for found in before.values()}) == 1  # whole rounds

    with Store(database) as store:
        assert store.get_many(KEYS) == {}
        found = measure(tasks(), store, Scripted(), precision=LONG)
    after = samples(database)
    for key in KEYS:
        assert after[key][: len(before[key])] == before[key]
        rounds = [sample.round for sample in after[key]]
        assert len(rounds) == len(set(rounds)) == LONG.most
    assert {value.count for value in found.values()} == {LONG.most}


def test_two_profilers_measure_nothing_twice(tmp_path: Path) -> None:
    database = tmp_path / "m.sqlite"
    profilers = [start(database, len(KEYS), tmp_path / "cache") for _ in range(2)]
    for profiler in profilers:
        out, err = profiler.communicate(timeout=90)
        assert profiler.returncode == 0, (out, err)
    assert {len(found) for found in samples(database).values()} == {LONG.most}
    with Store(database) as store:
        assert {value.count for value in store.get_many(KEYS).values()} == {LONG.most}


def test_only_rounds_of_the_usual_speed_are_continued(tmp_path: Path) -> None:
    database = tmp_path / "m.sqlite"
    profiler = start(database, len(KEYS), tmp_path / "cache")
    wait_for_rounds(profiler, database, 4)
    profiler.kill()
    profiler.communicate(timeout=30)
    before = len(samples(database)[KEYS[0]])
    # Since then the machine is twice as fast: what was sampled is not comparable.
    with Store(database) as store:
        device = Scripted(lambda task: steady(task) / 2)
        found = measure(tasks(), store, device, precision=LONG)
    assert {value.median_us for value in found.values()} == {5.0}
    assert all(value.settled and (value.repeated or 0) >= before for value in found.values())

"""Several devices measure at once; what a lost one leaves undone, the others do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from devices import FEW_ROUNDS, Scripted, steady, tasks

from mpq_compile.cost import measure as measure_module
from mpq_compile.cost.drift import REFERENCE
from mpq_compile.cost.keys import key_of
from mpq_compile.cost.measure import measure
from mpq_compile.cost.store import Store
from mpq_compile.errors import DeviceError, DeviceLostError
from mpq_compile.runtime.kernel_timing import Task

WANTED = tasks(6)
KEYS = [key_of(task, Scripted()) for task in WANTED]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "CHUNK", 2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "m.sqlite")


def worker(name: str, seconds: Callable[[Task], float]) -> Scripted:
    return Scripted(seconds, name=name, alone=False)


class Lost:
    """Times of a device that is lost after some blocks of kernels."""

    def __init__(self, blocks: int) -> None:
        self._left = blocks

    def __call__(self, task: Task) -> float:
        self._left -= task != REFERENCE
        if self._left < 0:
            raise DeviceLostError("the device does not answer", where="lost", remedy="start it")
        return steady(task)


class Noted:
    """Times of a device that waits a little, and notes what was timed and where."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.timed: set[Task] = set()

    def __call__(self, task: Task) -> float:
        self.threads.add(threading.get_ident())
        self.timed.add(task)
        time.sleep(0.005)
        return steady(task)


def test_workers_share_the_work(store: Store) -> None:
    notes = Noted(), Noted()
    farm = Scripted(workers=[worker(f"w{n}", note) for n, note in enumerate(notes)])
    found = measure(WANTED, store, farm, precision=FEW_ROUNDS)
    assert found.keys() == {task.workload.key for task in WANTED}
    mine, others = (note.timed - {REFERENCE} for note in notes)
    assert mine and others and mine | others == set(WANTED) and not mine & others
    assert notes[0].threads != notes[1].threads
    assert {len(samples) for samples in store.samples(KEYS).values()} == {3}


def test_a_lost_worker_leaves_its_rounds_and_its_work_to_others(store: Store) -> None:
    farm = Scripted(workers=[worker("lost", Lost(2 * 2 + 1)), worker("good", Noted())])
    found = measure(WANTED, store, farm, precision=FEW_ROUNDS)
    assert found.keys() == {task.workload.key for task in WANTED}
    # Two whole rounds of its first chunk were kept, and one more was enough.
    assert {len(samples) for samples in store.samples(KEYS).values()} == {3}
    assert {value.count for value in found.values()} == {3}


@pytest.mark.parametrize("count", [1, 2])
def test_no_worker_is_left(store: Store, count: int) -> None:
    farm = Scripted(workers=[worker(f"w{n}", Lost(2 * 3 + 3)) for n in range(count)])
    with pytest.raises(DeviceLostError, match="no device is left") as caught:
        measure(WANTED, store, farm, precision=FEW_ROUNDS)
    stored = len(store.get_many(KEYS))
    assert stored == 2 * count
    assert f"{stored} of 6 kernels are measured and stored" in str(caught.value.found)
    assert "run again" in str(caught.value.remedy)
    assert measure(WANTED, store, Scripted(), precision=FEW_ROUNDS).keys()


def test_another_error_ends_all(store: Store) -> None:
    def broken(task: Task) -> float:
        if task == WANTED[0]:
            raise DeviceError("out of memory")
        return steady(task)

    farm = Scripted(workers=[worker("broken", broken), worker("also", broken)])
    before = set(threading.enumerate())
    with pytest.raises(DeviceError, match="out of memory"):
        measure(WANTED, store, farm, precision=FEW_ROUNDS)
    assert set(threading.enumerate()) <= before


def test_an_error_of_the_database_reaches_the_caller(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> int:
        raise OSError("the disk is full")

    monkeypatch.setattr(store, "add_round", full)
    farm = Scripted(workers=[worker("w0", steady), worker("w1", steady)])
    with pytest.raises(OSError, match="the disk is full"):
        measure(WANTED, store, farm, precision=FEW_ROUNDS)

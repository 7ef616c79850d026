"""Which moments of a machine a block is made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest

from mpq_compile.runtime import blocks
from mpq_compile.runtime.blocks import Beside, Blocks
from mpq_compile.runtime.timing import Timings, time_in_turns
from mpq_compile.runtime.verify import settled


class Clock:
    """Time that passes only where something is said to take it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(blocks, "time", clock)
    return clock


class Machine:
    """Takes 1 ms for the reference, and 2 ms a few times after some of the network's calls."""

    def __init__(self, slow_after: Sequence[int] = ()) -> None:
        self._slow_after, self._left = slow_after, 0
        self._numbers = itertools.count()

    def reference(self) -> float:
        self._left -= 1
        return 2.0 if self._left >= 0 else 1.0

    def network(self) -> list[float]:
        number = next(self._numbers)
        self._left = 9 if number in self._slow_after else 0
        return [float(number)]


def one_block(
    timer: Callable[[], list[float]], reference: Callable[[], float], parts: int, **more: float
) -> Timings:
    return time_in_turns([timer], reference, blocks=1, parts=[parts], **more)


def test_a_block_is_made_of_quiet_parts() -> None:
    machine = Machine(slow_after=(1, 3))
    found = one_block(machine.network, machine.reference, parts=3)
    assert found.latencies_ms == [[[0.0, 2.0, 4.0]]]
    assert (found.reference_ms, found.repeated) == ([1.0], 2)


def test_a_quiet_machine_is_measured_once() -> None:
    machine = Machine()
    found = one_block(machine.network, machine.reference, parts=4)
    assert (found.latencies_ms, found.repeated) == ([[[0.0, 1.0, 2.0, 3.0]]], 0)


def test_where_nothing_is_quiet_the_quietest_count_however_slow_the_network() -> None:
    """The machine calms down while the network becomes slower: its own time does not decide."""
    calls = itertools.count()
    now = [2.0]

    def network() -> list[float]:
        number = next(calls)
        now[0] = 2.0 - 0.01 * number
        return [float(number)]

    found = one_block(network, lambda: now[0], parts=3, known_ms=1.0)
    assert found.repeated == 3 * 15
    assert found.latencies_ms == [[[47.0, 46.0, 45.0]]]
    assert found.reference_ms == [pytest.approx(2.0 - 0.45)]
    assert not settled([found])


def test_each_of_many_networks_has_its_share_of_the_patience(clock: Clock) -> None:
    """What they take anyway is not counted, or the first ones would leave nothing."""
    count, patience_s, part_s, look_s = 180, 10.0, 0.01, 1e-3

    def reference() -> float:
        clock.now += look_s
        return 2.0

    def network() -> list[float]:
        clock.now += part_s
        return [1e3 * part_s]

    beside = Beside(reference, 1.0, patience_s, count)
    start = clock.now
    spent = []
    for _ in range(count):
        before = clock.now
        Blocks(network, beside, None, 4).measure()
        spent.append(clock.now - before)
    share_s = (patience_s - (start - 100.0)) / count
    # Whole pauses are waited, so that none has its share exactly; what is left goes to later ones,
    # and at last to the last one.
    assert min(spent) >= 4 * part_s + 0.8 * share_s
    assert max(spent[:-1]) <= 4 * part_s + share_s + 2 * part_s + 10 * look_s
    assert spent[-1] <= 4 * part_s + 1.7 * share_s
    assert sum(spent) <= patience_s + count * 4 * part_s


def test_the_last_look_counts_for_all_parts_that_had_none() -> None:
    """Without patience a block has a look before it and one behind, and the slower one tells."""
    machine = Machine(slow_after=(3,))
    found = one_block(machine.network, machine.reference, parts=4, known_ms=1.0, patience_s=-1.0)
    assert (found.reference_ms, found.repeated) == ([2.0], 0)
    assert not settled([found])


class Meter:
    """Energies that are given instead of measured."""

    def __init__(self, joules: Iterator[float | None]) -> None:
        self._joules = joules

    def start(self) -> list[int]:
        return []

    def joules(self, start: list[int]) -> float | None:
        return next(self._joules)


@pytest.mark.parametrize(
    ("joules", "energy_mj"),
    [([1.0, 9.0, 2.0, 9.0, 3.0], 2e3), ([1.0, 9.0, None, 9.0, 3.0], None)],
)
def test_energy_is_that_of_the_parts_that_count(
    joules: list[float | None], energy_mj: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "EnergyMeter", lambda: Meter(iter(joules)))
    machine = Machine(slow_after=(1, 3))
    found = one_block(machine.network, machine.reference, parts=3)
    assert found.energy_mj == [energy_mj]

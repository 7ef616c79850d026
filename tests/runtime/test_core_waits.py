"""Waiting for a core: what the kernel counts, and what that means for a block of calls."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mpq_compile.runtime.core_waits import CoreWaits, Lost, WaitCounters, share_of
from mpq_compile.runtime.timing import time_in_turns
from mpq_compile.runtime.verify import judge, settled


def write_counters(proc: Path, waited_ns: dict[str, int], stolen_ticks: int) -> None:
    for thread, waited in waited_ns.items():
        folder = proc / "self" / "task" / thread
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"123 {waited} 7\n")
    own = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    lines = ["cpu  1 2 3 4 5 6 7 999 0 0", f"cpu{own} 1 2 3 4 5 6 7 {stolen_ticks} 0 0", "intr 5"]
    (proc / "stat").write_text("\n".join(lines))


def seconds_ago(counters: WaitCounters, seconds: float) -> WaitCounters:
    return replace(counters, time_s=counters.time_s - seconds)


def test_threads_and_the_host_add_up(tmp_path: Path) -> None:
    """A quarter of a second of two threads and half a second of the host's in a hundred seconds."""
    write_counters(tmp_path, {"1": 5_000_000, "2": 0}, 40)
    waits = CoreWaits(tmp_path)
    start = seconds_ago(waits.start(), 100)
    write_counters(tmp_path, {"1": 155_000_000, "2": 100_000_000, "3": 9_000_000_000}, 91)
    ticks = 50 / os.sysconf("SC_CLK_TCK")
    assert share_of([waits.lost(start)]) == pytest.approx((0.25 + ticks) / 100, rel=1e-3)


def test_one_tick_of_the_host_says_nothing(tmp_path: Path) -> None:
    write_counters(tmp_path, {"1": 0}, 40)
    waits = CoreWaits(tmp_path)
    start = seconds_ago(waits.start(), 0.1)
    write_counters(tmp_path, {"1": 0}, 41)
    assert share_of([waits.lost(start)]) == 0


def test_a_system_without_counters_waits_for_nothing(tmp_path: Path) -> None:
    waits = CoreWaits(tmp_path)
    assert share_of([waits.lost(waits.start())]) == 0


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no scheduler statistics")
def test_a_core_that_is_shared_is_waited_for() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    spin = f"import os\nos.sched_setaffinity(0, [{core}])\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            os.sched_setaffinity(0, [core])
            waits = CoreWaits()
            start, end = waits.start(), time.monotonic() + 0.5
            while time.monotonic() < end:
                pass
            assert share_of([waits.lost(start)]) > 0.1
        finally:
            os.sched_setaffinity(0, before)
            other.kill()


class Waiting(CoreWaits):
    """Shares that are given instead of measured."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__()
        self._shares = iter(shares)

    def lost(self, start: WaitCounters) -> Lost:
        return Lost(lasted_s=1.0, waited_s=next(self._shares))


def test_a_block_that_waited_is_measured_again() -> None:
    calls = iter([[1.0], [9.0], [1.0]])
    found = time_in_turns(
        [lambda: next(calls)], lambda: 1.0, blocks=2, waits=Waiting([0.0, 0.5, 0.05])
    )
    assert found.latencies_ms == [[[1.0], [1.0]]]
    assert (found.repeated, found.waited) == (1, [0.0, 0.05])
    assert settled([found])


def test_a_busy_machine_is_not_concluded_from() -> None:
    """The reference is as usual, and the calls are slow, because the threads waited."""
    found = time_in_turns([lambda: [1.0] * 9], lambda: 1.0, blocks=2, waits=Waiting([0.4] * 32))
    assert (found.repeated, found.waited) == (30, [0.4, 0.4])
    assert not settled([found])
    assert judge([found], {"latency_ms": 1.0}).status == "accepted"
    verdict = judge([found, replace(found, latencies_ms=[[[1.2], [0.8]]])], {"latency_ms": 0.9})
    assert (verdict.status, verdict.waited) == ("inconclusive", 0.4)

"""How long this process's threads waited for a core, as Linux counts it.

The reference workload cannot tell: it is over in a fraction of the time that a scheduler gives to
each program in turn, and after a pause its thread comes first. Blocks of calls last longer than
that, and wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PROC = Path("/proc")
# The eighth figure of a processor's line is the time that the host gave to others, in ticks.
_STEAL = 8


@dataclass(frozen=True, kw_only=True)
class WaitCounters:
    """What was counted until a moment.

    Args:
        time_s: The moment.
        waited_ns: Nanoseconds that each thread was ready to run and did not, by thread.
        stolen_ticks: Ticks that the host of a virtual machine took, by processor.
    """

    time_s: float
    waited_ns: Mapping[str, int]
    stolen_ticks: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What threads had no core for, within some time.

    Args:
        lasted_s: How long that was.
        waited_s: How long its threads were ready and did not run, added up.
        stolen_s: What the host took of each processor.
        tick_s: In which the host counts.
    """

    lasted_s: float = 0.0
    waited_s: float = 0.0
    stolen_s: Mapping[str, float] = field(default_factory=dict)
    tick_s: float = 0.0


def share_of(times: Sequence[Lost]) -> float:
    """Return the share of these times in which some thread had no core, 0 to 1.

    What threads and processors lost is added up: a network waits at its barriers for the one that
    is late, whichever it is. One tick of the host's on each processor may have been taken earlier.
    """
    stolen: dict[str, float] = {}
    for lost in times:
        for cpu, seconds in lost.stolen_s.items():
            stolen[cpu] = stolen.get(cpu, 0.0) + seconds
    tick_s = max((lost.tick_s for lost in times), default=0.0)
    by_host = sum(max(0.0, seconds - tick_s) for seconds in stolen.values())
    lasted = max(sum(lost.lasted_s for lost in times), 1e-9)
    return min(1.0, (sum(lost.waited_s for lost in times) + by_host) / lasted)


class CoreWaits:
    """Reads the scheduler's counters; nothing was waited for where there are none.

    Args:
        proc: Where the kernel shows them.
    """

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._processors = {f"cpu{number}" for number in own}

    def start(self) -> WaitCounters:
        """Return the counters, for :meth:`lost`."""
        return WaitCounters(
            time_s=time.monotonic(), waited_ns=self._waited(), stolen_ticks=self._stolen()
        )

    def lost(self, start: WaitCounters) -> Lost:
        """Return what was lost since ``start``."""
        now = self.start()
        waited_ns = sum(
            now.waited_ns[thread] - before
            for thread, before in start.waited_ns.items()
            if thread in now.waited_ns
        )
        tick_s = 1 / self._ticks_per_s
        return Lost(
            lasted_s=now.time_s - start.time_s,
            waited_s=waited_ns * 1e-9,
            stolen_s={
                cpu: tick_s * (now.stolen_ticks.get(cpu, n) - n)
                for cpu, n in start.stolen_ticks.items()
            },
            tick_s=tick_s,
        )

    def _waited(self) -> dict[str, int]:
        paths = (self._proc / "self" / "task").glob("*/schedstat")
        words = {path.parent.name: _words(path) for path in paths}
        return {thread: int(found[1]) for thread, found in words.items() if len(found) > 1}

    def _stolen(self) -> dict[str, int]:
        lines = [line.split() for line in _text(self._proc / "stat").splitlines()]
        return {
            words[0]: int(words[_STEAL])
            for words in lines
            if len(words) > _STEAL and words[0] in self._processors
        }


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    """Return what a file holds; nothing where it is missing: threads end, and not all is Linux."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

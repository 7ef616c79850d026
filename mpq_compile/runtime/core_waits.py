"""How long this process's threads waited for a core, as Linux counts it.

The reference workload cannot tell: it is over in a fraction of the time that a scheduler gives to
each program in turn, and after a pause its thread comes first. Blocks of calls last longer than
that, and wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
        """Return the counters, for :meth:`share`."""
        return WaitCounters(
            time_s=time.monotonic(), waited_ns=self._waited(), stolen_ticks=self._stolen()
        )

    def share(self, start: WaitCounters) -> float:
        """Return the share of the time since ``start`` in which some thread had no core, 0 to 1.

        What threads and processors lost is added up: a network waits at its barriers for the one
        that is late, whichever it is. One tick of the host's may have been taken earlier.
        """
        now = self.start()
        waited = sum(
            now.waited_ns[thread] - before
            for thread, before in start.waited_ns.items()
            if thread in now.waited_ns
        )
        ticks = [now.stolen_ticks.get(cpu, n) - n for cpu, n in start.stolen_ticks.items()]
        stolen = sum(max(0, count - 1) for count in ticks) / self._ticks_per_s
        lasted = max(now.time_s - start.time_s, 1e-9)
        return min(1.0, (waited * 1e-9 + stolen) / lasted)

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

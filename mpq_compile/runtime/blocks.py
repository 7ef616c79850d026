"""Blocks of a network's calls, taken where the machine is as usual: a reference workload tells.

A block is made of parts of some milliseconds, with a look at the reference before and after each.
On a machine that is shared, moments in which it is as usual come and go within tens of
milliseconds: a block whose parts are quiet is made of such moments, while one that is taken in one
piece meets none. Which parts count is decided by the reference alone, never by what the network
took in them.
"""

from __future__ import annotations

import bisect
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpq_compile.runtime.core_waits import CoreWaits
from mpq_compile.runtime.rapl import EnergyMeter

# A part is quiet where the reference took at most so many times its usual before and after it.
# Networks are slowed two to four times as much as the reference is: 1.03 is 1.00 to 1.02 there,
# 1.06 is 1.08 to 1.18 (docs/performance.md).
QUIET = 1.03
# A block whose quietest parts are further off than this says little of the network.
DRIFT = 1.05
# So does one in which the threads waited for a core for more than this share of the time. Calls
# that were interrupted are outliers up to there; beyond, the median of a block may be one of them.
WAITED = 0.1
# How many times the parts of a block are taken at most, to find quiet ones.
_MOST_TAKEN = 16
# How often a block is measured again because its threads waited, and all blocks of a network in one
# process: a machine that is busy throughout is not worth more.
_RETRIES, _MOST_REPEATED = 4, 6
# Looks at the reference before anything is measured, and beside a part.
_FIRST_LOOKS, _LOOKS = 40, 3
# What a fiftieth of the looks are below is usual: the least is luck, and a busy machine may have
# few quiet moments.
_USUAL_SHARE = 50
# A machine that is not as usual is waited for: an idle core is given to others, and the one that
# this process wakes up on may be another.
_PAUSE_S, _PAUSES = 4e-3, 12

Call = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the reference took beside a block in ms, and the share of it spent waiting."""

    reference_ms: float
    waited: float


class Beside:
    """The reference workload: what it takes now, and what it usually takes.

    Args:
        reference: Runs it once; returns what that took, in ms.
        known_ms: Its usual time in earlier processes; None if there were none.
        patience_s: Seconds from now on in which the machine is waited for.
        blocks: All blocks that will be taken; each may wait for its share of the time left.
    """

    def __init__(
        self, reference: Call, known_ms: float | None, patience_s: float, blocks: int
    ) -> None:
        self._reference = reference
        self._known_ms = math.inf if known_ms is None else known_ms
        self._until = time.monotonic() + patience_s
        self._left = blocks
        self._seen: list[float] = []  # in order of time taken
        for count in range(_FIRST_LOOKS):
            if self.is_over and count >= _LOOKS:
                break
            self._pause()
            self.look()

    @property
    def usual_ms(self) -> float:
        """What the reference usually takes in this process."""
        return self._seen[len(self._seen) // _USUAL_SHARE]

    @property
    def quiet_ms(self) -> float:
        """What the reference takes at most in a quiet moment."""
        return min(self.usual_ms, self._known_ms) * QUIET

    @property
    def is_over(self) -> bool:
        """Tell whether nothing is waited for any more."""
        return time.monotonic() > self._until

    def next_deadline(self) -> float:
        """Return until when the next block may wait for the machine, on the monotonic clock."""
        now = time.monotonic()
        share_s = (self._until - now) / max(self._left, 1)
        self._left -= 1
        return now + share_s

    def look(self) -> float:
        """Return what the reference takes now, in ms."""
        count = 1 if self.is_over else _LOOKS
        found = statistics.median(self._reference() for _ in range(count))
        bisect.insort(self._seen, found)
        return found

    def settle(self) -> float:
        """Wait for a quiet moment, not for long; return what the reference takes then."""
        found = self.look()
        for _ in range(_PAUSES):
            if found <= self.quiet_ms or self.is_over:
                break
            self._pause()
            found = self.look()
        return found

    def _pause(self) -> None:
        time.sleep(_PAUSE_S)
        self._reference()  # wakes the threads up


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Calls in ms, their energy in J if that is known, and the slower look beside them in ms."""

    calls: Sequence[float]
    joules: float | None
    reference_ms: float


class Blocks:
    """The blocks of one network.

    Args:
        timer: Returns the latencies of some calls, in ms.
        beside: The reference.
        waits: Tells how long threads waited; None where nobody looks.
        parts: How often a block calls the timer.
    """

    def __init__(
        self, timer: Callable[[], list[float]], beside: Beside, waits: CoreWaits | None, parts: int
    ) -> None:
        self._timer, self._beside, self._waits, self._parts = timer, beside, waits, parts
        self._meter = EnergyMeter()
        self._kept: list[_Part] = []
        self._blocks_again = 0
        self.latencies_ms: list[list[float]] = []
        self.repeated = 0

    def measure(self) -> Surroundings:
        """Take one block; return what was beside it."""
        deadline = self._beside.next_deadline()
        for attempt in range(_RETRIES):
            parts, waited = self._take(deadline)
            spent = attempt == _RETRIES - 1 or self._blocks_again == _MOST_REPEATED
            if waited <= WAITED or spent or self._beside.is_over:
                break
            self._blocks_again += 1
            self.repeated += self._parts
        self._kept += parts
        self.latencies_ms.append([ms for part in parts for ms in part.calls])
        # Half of the calls must be disturbed to show in their median, and half of the parts.
        found = statistics.median(part.reference_ms for part in parts)
        return Surroundings(reference_ms=found, waited=waited)

    def _take(self, deadline: float) -> tuple[list[_Part], float]:
        """Take parts until enough were quiet or time is out.

        Returns the quietest ones, and the share of the time that threads waited in all of them.
        """
        begun = self._waits.start() if self._waits else None
        taken: list[_Part] = []
        looked = self._beside.settle()
        while True:
            start = self._meter.start()
            calls = self._timer()
            joules, before = self._meter.joules(start), looked
            # Where a barrier takes milliseconds, a look takes a second.
            if len(taken) + 1 >= self._parts or not self._beside.is_over:
                looked = self._beside.look()
            taken.append(_Part(calls=calls, joules=joules, reference_ms=max(before, looked)))
            if self._is_enough(taken, deadline):
                break
            if looked > self._beside.quiet_ms and not self._beside.is_over:
                looked = self._beside.settle()
        waited = self._waits.share(begun) if self._waits and begun else 0.0
        self.repeated += len(taken) - self._parts
        return sorted(taken, key=lambda part: part.reference_ms)[: self._parts], waited

    def _is_enough(self, taken: Sequence[_Part], deadline: float) -> bool:
        if len(taken) < self._parts:
            return False
        limit_ms = self._beside.quiet_ms
        quiet = sum(part.reference_ms <= limit_ms for part in taken)
        late = time.monotonic() > deadline or len(taken) >= _MOST_TAKEN * self._parts
        return quiet >= self._parts or late

    @property
    def energy_mj(self) -> float | None:
        """Energy of a call in mJ; None where it is not known."""
        known = [part.joules for part in self._kept if part.joules is not None]
        # The call that warms up is paid for too.
        calls = sum(len(part.calls) + (len(part.calls) > 1) for part in self._kept)
        return 1e3 * sum(known) / calls if known and len(known) == len(self._kept) else None

"""Blocks of a network's calls, taken where the machine is as usual: a reference workload tells.

A block is made of parts of some milliseconds, with a look at the reference before and after each.
On a machine that is shared, moments in which it is as usual come and go within tens of
milliseconds: a block whose parts are quiet is made of such moments, while one that is taken in one
piece meets none. Which parts count is decided by the reference, and by whether the threads had
their cores, never by what the network took in them.
"""

from __future__ import annotations

import bisect
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpq_compile.runtime.core_waits import CoreWaits, Lost, share_of
from mpq_compile.runtime.rapl import EnergyMeter

# A part is quiet where the reference took at most so many times its usual before and after it.
# Networks are slowed up to four times as much as the reference is: 1.03 there is up to 1.04 here,
# 1.06 is 1.07 to 1.19 (docs/performance.md).
QUIET = 1.03
# A block whose quietest parts are further off than this says little of the network.
DRIFT = 1.04
# So does one in which the threads waited for a core for more than this share of the time. Calls
# that were interrupted are outliers up to there; beyond, the median of a block may be one of them.
WAITED = 0.1
# How many times the parts of a block are taken at most, to find quiet ones.
_MOST_TAKEN = 16
# Looks at the reference before anything is measured, and runs of it that make a look.
_FIRST_LOOKS, _LOOKS = 40, 3
# What a fiftieth of the looks are below is usual: the least is luck, and a busy machine may have
# few quiet moments.
_USUAL_SHARE = 50
# A machine that is not as usual is waited for: an idle core is given to others, and the one that
# this process wakes up on may be another.
_PAUSE_S, _PAUSES = 4e-3, 12


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
        patience_s: Seconds in which the machine is waited for, beyond what is measured anyway.
        blocks: All blocks that will be taken; each may wait for its share of the time left.
    """

    def __init__(
        self,
        reference: Callable[[], float],
        known_ms: float | None,
        patience_s: float,
        blocks: int,
    ) -> None:
        self._reference = reference
        self._known_ms = math.inf if known_ms is None else known_ms
        self._until = time.monotonic() + patience_s
        self._deadline = self._until
        self._left = blocks
        self._seen: list[float] = []  # sorted
        for count in range(_FIRST_LOOKS):
            if self.is_over and count >= _LOOKS:
                break
            self._pause()
            self.look()

    @property
    def usual_ms(self) -> float:
        """What the reference usually takes in this process."""
        count = len(self._seen)
        return self._seen[min(max(1, count // _USUAL_SHARE), count - 1)]

    @property
    def quiet_ms(self) -> float:
        """What the reference takes at most in a quiet moment."""
        return min(self.usual_ms, self._known_ms) * QUIET

    @property
    def is_over(self) -> bool:
        """Tell whether nothing is waited for any more."""
        return time.monotonic() > self._until

    @property
    def is_late(self) -> bool:
        """Tell whether this block has had its share of waiting."""
        return time.monotonic() > self._deadline

    def begin_block(self, parts: int) -> None:
        """Give the next block its share of the time left, less its looks behind ``parts``."""
        now = time.monotonic()
        looks_s = parts * _LOOKS * self.usual_ms * 1e-3
        self._deadline = now + (self._until - now) / max(self._left, 1) - looks_s
        self._left -= 1

    def allow(self, seconds: float) -> None:
        """Count time that was spent measuring as none that was waited."""
        self._until += seconds
        self._deadline += seconds

    def look(self) -> float:
        """Return what the reference takes now, in ms, and remember it."""
        found = self._glance()
        bisect.insort(self._seen, found)
        return found

    def settle(self) -> float:
        """Wait for a quiet moment, not for long; return what the reference takes then."""
        found = self._glance()
        for _ in range(_PAUSES):
            if found <= self.quiet_ms or self.is_late:
                break
            self._pause()
            found = self._glance()
        # What was waited through is not how the machine usually is.
        bisect.insort(self._seen, found)
        return found

    def _glance(self) -> float:
        count = 1 if self.is_over else _LOOKS
        return statistics.median(self._reference() for _ in range(count))

    def _pause(self) -> None:
        time.sleep(_PAUSE_S)
        self._reference()  # wakes the threads up


@dataclass(kw_only=True)
class _Part:
    """Calls in ms, their energy in J if that is known, what was lost meanwhile, and the slowest
    look beside them in ms."""

    calls: Sequence[float]
    joules: float | None
    lost: Lost
    reference_ms: float

    @property
    def had_cores(self) -> bool:
        """Tell whether the threads hardly waited."""
        return share_of([self.lost]) <= WAITED

    def is_quiet(self, limit_ms: float) -> bool:
        """Tell whether nothing disturbed it."""
        return self.had_cores and self.reference_ms <= limit_ms


class Blocks:
    """The blocks of one network.

    Args:
        timer: Returns the latencies of some calls, in ms.
        beside: The reference.
        waits: Tells how long threads waited; None where nobody looks.
        parts: How many parts, one call of the timer each, a block is made of.
    """

    def __init__(
        self, timer: Callable[[], list[float]], beside: Beside, waits: CoreWaits | None, parts: int
    ) -> None:
        self._timer, self._beside, self._waits, self._number = timer, beside, waits, parts
        self._meter = EnergyMeter()
        self._kept: list[_Part] = []
        self.latencies_ms: list[list[float]] = []
        self.repeated = 0

    def measure(self) -> Surroundings:
        """Take one block; return what was beside it."""
        taken = self._take()
        self.repeated += len(taken) - self._number
        taken.sort(key=lambda part: (not part.had_cores, part.reference_ms))
        kept = taken[: self._number]
        self._kept += kept
        self.latencies_ms.append([ms for part in kept for ms in part.calls])
        # Half of the calls must be disturbed to show in their median, and half of the parts.
        return Surroundings(
            reference_ms=statistics.median(part.reference_ms for part in kept),
            waited=share_of([part.lost for part in kept]),
        )

    def _take(self) -> list[_Part]:
        """Take parts until enough were quiet or time is out."""
        self._beside.begin_block(self._number)
        taken: list[_Part] = []
        looked, since = self._beside.settle(), 0
        while True:
            taken.append(self._part(looked))
            if len(taken) <= self._number:
                self._beside.allow(sum(taken[-1].calls) * 1e-3)
            # Where a barrier takes milliseconds, a look takes a second.
            if len(taken) >= self._number or not self._beside.is_over:
                looked = self._beside.look()
                for part in taken[since:]:
                    part.reference_ms = max(part.reference_ms, looked)
                since = len(taken)
            if self._is_enough(taken):
                return taken
            if looked > self._beside.quiet_ms and not self._beside.is_late:
                looked = self._beside.settle()

    def _part(self, looked_ms: float) -> _Part:
        begun = self._waits.start() if self._waits else None
        energy = self._meter.start()
        calls = self._timer()
        joules = self._meter.joules(energy)
        lost = self._waits.lost(begun) if self._waits and begun else Lost()
        return _Part(calls=calls, joules=joules, lost=lost, reference_ms=looked_ms)

    def _is_enough(self, taken: Sequence[_Part]) -> bool:
        if len(taken) < self._number:
            return False
        if self._beside.is_late or len(taken) >= _MOST_TAKEN * self._number:
            return True
        limit_ms = self._beside.quiet_ms
        return sum(part.is_quiet(limit_ms) for part in taken) >= self._number

    @property
    def energy_mj(self) -> float | None:
        """Energy of a call in mJ; None where it is not known."""
        known = [part.joules for part in self._kept if part.joules is not None]
        # The call that warms up is paid for too.
        calls = sum(len(part.calls) + (len(part.calls) > 1) for part in self._kept)
        return 1e3 * sum(known) / calls if known and len(known) == len(self._kept) else None

"""The reference workload: whether a device is as fast as it usually is, at any moment.

Its times are kept in the database. So a later process, or one that goes on where another was
killed, knows what is usual, and a device that slows down over the whole run is noticed.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable

from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.samples import Sample
from mpq_compile.cost.summary import measurement_of
from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.runtime.kernel_timing import Run, Task

REFERENCE = Task(
    operator="reference",
    workload=LinearWorkload(rows=16, in_features=256, out_features=256, compute="fp32", out="fp32"),
)
# A round is near the usual where the reference is at most this factor slower or faster.
NEAR = 1.15
# Looks at the reference that tell what is usual: those of many chunks, in several processes.
LONG = 1000
# As many fast ones in a row show that what was thought usual was a slow time.
_SHORT = 12
_SETTLE_S = 1.0
_STEADY = 0.03
_FIRST_LOOKS = 9


class Usual:
    """The time that the reference usually takes.

    Other work on the machine only slows it. So the usual time is the lower quartile of the latest
    1,000 looks: the machine may be disturbed for most of the time. Where the latest twelve are
    faster still, the database was begun in a slow time, and their median counts.

    Args:
        recent: Times in µs, the oldest first.
        remembered: What another database measured, for where there are no times yet.
    """

    def __init__(self, recent: Iterable[float], remembered: Measurement | None = None) -> None:
        self._times = deque(recent, maxlen=LONG)
        if not self._times and remembered is not None:
            self._times.extend([remembered.median_us] * _SHORT)
        self._us: float | None = None

    def __len__(self) -> int:
        return len(self._times)

    def add(self, us: float) -> None:
        """Take a look at the reference into account."""
        self._times.append(us)
        self._us = None

    @property
    def us(self) -> float:
        """The usual time, µs."""
        if self._us is None:
            latest = list(self._times)[-_SHORT:]
            quick = [statistics.median(latest)] if len(latest) == _SHORT else []
            self._us = min([statistics.median(self._faster_half()), *quick])
        return self._us

    def is_near(self, *times_us: float) -> bool:
        """Tell whether all of these times are near the usual one."""
        usual = self.us
        return all(usual / NEAR <= us <= usual * NEAR for us in times_us)

    def holds_for(self, sample: Sample) -> bool:
        """Tell whether the reference was near its usual time around a sample."""
        return self.is_near(sample.before_us, sample.after_us)

    def measurement(self) -> Measurement:
        """Return the usual time as a measurement: of the faster half of the looks."""
        return measurement_of(self._faster_half())

    def _faster_half(self) -> list[float]:
        ordered = sorted(self._times)
        return ordered[: (len(ordered) + 1) // 2]


class Reference:
    """The reference workload on one device, and what is usual there.

    Args:
        key: What its times are filed under.
        run: The kernel.
        usual: Its times so far.
    """

    def __init__(self, key: MeasurementKey, run: Run, usual: Usual) -> None:
        self.key = key
        self.usual = usual
        self._run = run

    def look(self) -> float:
        """Time it once, µs, and take that into account."""
        us = self._run.time() * 1e6
        self.usual.add(us)
        return us

    def settle(self) -> None:
        """Wait until a fresh process, slow at first, has its usual speed; a second at most."""
        end, before = time.monotonic() + _SETTLE_S, self._run.time()
        while time.monotonic() < end:
            now = self._run.time()
            steady = abs(now - before) <= _STEADY * before
            if steady and (not len(self.usual) or self.usual.is_near(now * 1e6)):
                break
            before = now
        while len(self.usual) < _FIRST_LOOKS:
            self.look()

"""Kernels timed in turns, round by round, until each one's median is known well enough.

Every round visits each kernel that is still uncertain once, between two looks at the reference
workload. A round in which the reference is off is repeated: its samples are stored and counted,
and left out. What is stored survives the process; a later one goes on with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mpq_compile.cost.bench import Bench
from mpq_compile.cost.drift import Usual
from mpq_compile.cost.measurement import Measurement, MeasurementKey, utc_now
from mpq_compile.cost.samples import Round, Sample
from mpq_compile.cost.store import Store
from mpq_compile.cost.summary import is_tight, summarize
from mpq_compile.runtime.kernel_timing import BLOCK_S, Run

_LONGEST_PAUSE_S = 0.2
# Rounds that are taken of kernels once they are built, even if the time is over.
_AT_ONCE = 7
Accepts = Callable[[Measurement], bool]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """When a kernel has been timed enough.

    Args:
        relative: Half of the 95 % interval of its median, as a share of the median.
        least, most: Rounds that count.
        kernel_s: Seconds after which a kernel needs ``least`` rounds only.
        repeats: Rounds of a kernel that are repeated because the reference is off, those of
            earlier runs among them. After that what was sampled is taken as it is; where less than
            ``least`` of it is near the usual, it is marked as not settled.
    """

    relative: float = 0.015
    least: int = 7
    most: int = 40
    kernel_s: float = 1.0
    repeats: int = 20

    def is_reached(self, times_us: Sequence[float]) -> bool:
        """Tell whether these samples are enough."""
        count = len(times_us)
        if count < self.least:
            return False
        spent = sum(max(us / 1e6, BLOCK_S) for us in times_us)
        return count >= self.most or spent >= self.kernel_s or is_tight(times_us, self.relative)


def accept_any(found: Measurement) -> bool:
    """Accept whatever the store has."""
    return True


def time_in_rounds(
    runs: Mapping[MeasurementKey, Run],
    bench: Bench,
    precision: Precision,
    *,
    until: float = math.inf,
    accepts: Accepts = accept_any,
) -> dict[MeasurementKey, Measurement]:
    """Time kernels in turns and store what comes out; return it with what was known.

    The device is held alone. Another process may have measured some of the kernels while this one
    waited for that: what is there is not measured again.

    Args:
        runs: The kernels; few enough that a round takes no longer than the machine stays as it is.
        bench: Where.
        precision: When a kernel has been timed enough.
        until: Stop at this ``time.monotonic()``, but not before a few rounds: these
            kernels were built for it, and a next run goes on from there. Those that are still
            uncertain are left out.
        accepts: Which of the store's measurements need not be made again.
    """
    reference = bench.reference  # built before the device is held
    with bench.device.lock():
        stored = bench.at_store(lambda store: store.get_many(runs))
        known = {key: found for key, found in stored.items() if accepts(found)}
        left = {key: run for key, run in runs.items() if key not in known}
        if not left:
            return known
        samples = bench.at_store(lambda store: store.samples(left))
        taken = Taken(usual=reference.usual, precision=precision, samples=samples, replaced=stored)
        _take_rounds(left, bench, taken, until)
        found = taken.results()
        rows = [*found.items(), (reference.key, reference.usual.measurement())]
        bench.at_store(lambda store: store.put_many(rows))
    return known | found


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The samples of some kernels, those of earlier processes among them.

    Args:
        usual: Of the reference.
        precision: When a kernel has been timed enough.
        samples: Of each kernel, the oldest first; rounds are added to them.
        replaced: Measurements that are not good enough: repeats count from there on.
    """

    usual: Usual
    precision: Precision
    samples: Mapping[MeasurementKey, list[Sample]]
    replaced: Mapping[MeasurementKey, Measurement]

    def uncertain(self) -> list[MeasurementKey]:
        """Return the kernels that need more rounds."""
        return [key for key in self.samples if not self._is_done(key)]

    def add(self, number: int, round_: Round) -> None:
        """Take a round into account."""
        for key, us in round_.times_us.items():
            self.samples[key].append(round_.sample(number, us))

    def results(self) -> dict[MeasurementKey, Measurement]:
        """Return what is certain; and, where the reference does not settle, the rest as it is."""
        return {key: self._summary(key) for key in self.samples if self._is_done(key)}

    def _is_done(self, key: MeasurementKey) -> bool:
        return self._is_certain(key) or self._is_hopeless(key)

    def _is_hopeless(self, key: MeasurementKey) -> bool:
        """Tell whether the reference does not settle around this kernel.

        Rounds of earlier runs count: many short runs are no better than a long one.
        """
        off = [sample for sample in self.samples[key] if not sample.kept]
        if key in self.replaced:
            since = self.replaced[key].moment
            off = [sample for sample in off if datetime.fromisoformat(sample.time) > since]
        return len(off) >= self.precision.repeats

    def _summary(self, key: MeasurementKey) -> Measurement:
        every, good = self.samples[key], self._good(key)
        settled = len(good) >= self.precision.least
        off = len(every) - len(good)
        return summarize(good if settled else every, repeated=off, settled=settled)

    def _is_certain(self, key: MeasurementKey) -> bool:
        return self.precision.is_reached([sample.us for sample in self._good(key)])

    def _good(self, key: MeasurementKey) -> list[Sample]:
        """Return the samples around which the reference was near its usual time."""
        return [sample for sample in self.samples[key] if self.usual.holds_for(sample)]


def _take_rounds(
    runs: Mapping[MeasurementKey, Run], bench: Bench, taken: Taken, until: float
) -> None:
    """Take rounds, each written as soon as it ends, until nothing is uncertain."""
    if taken.uncertain():
        bench.reference.settle()
    pause, rounds = 0.0, 0
    while active := taken.uncertain():
        if rounds >= _AT_ONCE and time.monotonic() >= until:
            break
        rounds += 1
        time.sleep(pause)
        round_ = _take_round({key: runs[key] for key in active}, bench)
        taken.add(_write(round_, bench), round_)
        pause = 0.0 if round_.kept else min(2 * pause + 0.01, _LONGEST_PAUSE_S)


def _take_round(runs: Mapping[MeasurementKey, Run], bench: Bench) -> Round:
    reference = bench.reference
    before = reference.look()
    times = {key: run.time() * 1e6 for key, run in runs.items()}
    after = reference.look()
    conditions = bench.device.conditions()
    return Round(
        reference=reference.key,
        before_us=before,
        after_us=after,
        clock_mhz=conditions.clock_mhz,
        load=conditions.load,
        time=utc_now(),
        kept=reference.usual.is_near(before, after),
        times_us=times,
    )


def _write(round_: Round, bench: Bench) -> int:
    def add(store: Store) -> int:
        return store.add_round(round_)

    return bench.at_store(add)

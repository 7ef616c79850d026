"""Latency of kernels on a device, through TVM: what the cost table is made of."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence

from mpq_compile.cost.bench import Bench
from mpq_compile.cost.drift import REFERENCE, Usual
from mpq_compile.cost.keys import key_of
from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.rounds import Accepts, Precision, accept_any, time_in_rounds
from mpq_compile.cost.store import Store
from mpq_compile.cost.workers import distribute
from mpq_compile.errors import DeviceLostError, ProfileError, TimeRanOutError
from mpq_compile.progress import counted
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.kernel_timing import Run, Task

# Kernels that are timed in turns: a round of them takes about a tenth of a second.
CHUNK = 24
# Where there is little time, few kernels are built before the first is timed.
_SHORT_S, _SMALL_CHUNK = 20.0, 6


def measure(
    tasks: Iterable[Task],
    store: Store,
    device: Device,
    *,
    budget_s: float = math.inf,
    precision: Precision | None = None,
    again: bool = False,
) -> dict[str, Measurement]:
    """Return the latency of each task by ``workload.key``; times only what the store lacks.

    Each round is stored as it ends, and a run that was interrupted is continued from there. All
    workers of the device take part; where one is lost, the others do its work.

    Args:
        tasks: What is needed.
        store: Where measurements are kept.
        device: Where they run.
        budget_s: Stop measuring after this many seconds. Some kernels are measured in any case,
            so that repeating a short run gets there too.
        precision: When a kernel has been timed enough.
        again: Measure more where the store's measurement was made while the reference workload
            was not at its usual time. Otherwise such a measurement is used as it is.

    Raises:
        TimeRanOutError: Not everything was measured in time; run again to go on.
        DeviceError: A kernel computes something else than its oracle.
        DeviceLostError: No worker is left.
        ProfileError: The store lacks something and is read-only, or cannot be written.
    """
    by_key = {key_of(task, device): task for task in tasks}
    accepts = _accepts_usual(store, device) if again and not store.read_only else accept_any
    known = store.get_many(by_key)
    left = [key for key in by_key if key not in known or not accepts(known[key])]
    # Runs of a short time must not spend it on measuring again while others have no measurement.
    left.sort(key=known.__contains__)
    if left:
        _refuse_read_only(store, by_key, known)
        job = _Job(by_key, precision or Precision(), accepts, budget_s)
        job.do(left, device, store)
        known = store.get_many(by_key)
    _refuse_missing(by_key, known, budget_s)
    return {by_key[key].workload.key: value for key, value in known.items()}


class _Job:
    """One call of :func:`measure`."""

    def __init__(
        self,
        tasks: Mapping[MeasurementKey, Task],
        precision: Precision,
        accepts: Accepts,
        budget_s: float,
    ) -> None:
        self._tasks = tasks
        self._precision = precision
        self._accepts = accepts
        self._until = time.monotonic() + budget_s
        self._size = CHUNK if budget_s > _SHORT_S else _SMALL_CHUNK
        self._begun = False

    def do(self, left: Sequence[MeasurementKey], device: Device, store: Store) -> None:
        """Measure the kernels that are left, in chunks."""
        chunks = [left[i : i + self._size] for i in range(0, len(left), self._size)]
        with counted(2 * len(left), "profile kernels") as advance:

            def work(chunk: Sequence[MeasurementKey], bench: Bench) -> None:
                runs = self._built(chunk, bench)
                advance(len(chunk))
                if runs:
                    self._time(runs, bench)
                advance(len(chunk))

            try:
                distribute(chunks, device, store, work)
            except DeviceLostError as error:
                raise _no_device(error, store, self._tasks) from error

    def _built(self, chunk: Sequence[MeasurementKey], bench: Bench) -> dict[MeasurementKey, Run]:
        """Build the kernels that nobody has measured meanwhile.

        None where the time is over, except for the first chunk.
        """
        known = bench.at_store(lambda store: store.get_many(chunk))
        left = [key for key in chunk if key not in known or not self._accepts(known[key])]
        if not left or (self._begun and time.monotonic() >= self._until):
            return {}
        self._begun = True
        runs = bench.kernels([self._tasks[key] for key in left])
        return dict(zip(left, runs, strict=True))

    def _time(self, runs: Mapping[MeasurementKey, Run], bench: Bench) -> None:
        time_in_rounds(runs, bench, self._precision, until=self._until, accepts=self._accepts)


def _accepts_usual(store: Store, device: Device) -> Accepts:
    """Return a test for measurements that were made at what is now known as the usual speed."""
    remembered = store.get(key_of(REFERENCE, device))
    usual = None if remembered is None else Usual((), remembered)

    def accepts(found: Measurement) -> bool:
        if usual is None or found.reference_us is None:
            return found.settled
        return found.settled and usual.is_near(found.reference_us)

    return accepts


def _refuse_read_only(
    store: Store, wanted: Mapping[MeasurementKey, Task], known: Mapping[MeasurementKey, Measurement]
) -> None:
    if not store.read_only:
        return
    raise ProfileError(
        "the database lacks measurements and is read-only",
        where=str(store.path),
        expected=f"measurements of {len(wanted)} kernels",
        found=f"{len(known)} of them",
        remedy="set MPQ_DB to a file that this user may write",
    )


def _refuse_missing(
    wanted: Mapping[MeasurementKey, Task],
    known: Mapping[MeasurementKey, Measurement],
    budget_s: float,
) -> None:
    if len(known) == len(wanted):
        return
    raise TimeRanOutError(
        "the time to measure ran out",
        expected=f"{len(wanted)} kernels within {max(budget_s, 0):.0f} s",
        found=f"{len(known)} measured and stored",
        remedy="run again to go on, or allow more time",
    )


def _no_device(
    error: DeviceLostError, store: Store, wanted: Mapping[MeasurementKey, Task]
) -> DeviceLostError:
    stored = len(store.get_many(wanted))
    return DeviceLostError(
        f"no device is left to measure on: {error.message}",
        where=error.where,
        expected=error.expected,
        found=f"{error.found}; {stored} of {len(wanted)} kernels are measured and stored",
        remedy=f"{error.remedy}; run again to go on",
    )

"""A small measured search over the schedules of matrix multiplies, kept with the measurements.

Every schedule that a kernel offers is timed in turns with the others. One that is not the cost
model's is taken only where a second, independent set of rounds confirms that it is faster: the
best of several noisy times is too good by chance. Both sets are rows of the database; what was
decided follows from them alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mpq_compile.cost.bench import Bench
from mpq_compile.cost.keys import key_of
from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.rounds import Precision, time_in_rounds
from mpq_compile.cost.store import Store
from mpq_compile.cost.workers import distribute
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.geometry import geometry
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload
from mpq_compile.progress import counted
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.environment import seconds_of
from mpq_compile.runtime.kernel_timing import Task

TRIAL, CHECK = "schedule", "schedule-check"
# Another schedule than the cost model's must take at most this share of its time.
GAIN = 0.97
BUDGET_S = 20.0
# Schedules are compared with each other in the same rounds: their ratio needs no narrow interval.
_PRECISION = Precision(least=7, most=7, repeats=7)

Rows = Mapping[MeasurementKey, Measurement]


def tuning_budget_s() -> float:
    """Return the seconds that ``MPQ_TUNE`` allows for a network; 0 turns tuning off.

    Raises:
        DeviceError: It is not a number of seconds.
    """
    return seconds_of("MPQ_TUNE", BUDGET_S, "tuning")


@dataclass(frozen=True, kw_only=True)
class Search:
    """The schedules of one workload and the keys of their times; the cost model's is the first."""

    workload: Workload
    choices: Sequence[Choice]
    trials: Sequence[MeasurementKey]
    checks: Sequence[MeasurementKey]

    def challenger(self, rows: Rows) -> int | None:
        """Return the number of the fastest schedule of the first set; None without all of it."""
        if len(self.choices) == 1:
            return 0
        if any(key not in rows for key in self.trials):
            return None
        times = [rows[key].median_us for key in self.trials]
        fastest = times.index(min(times))
        return fastest if times[fastest] <= GAIN * times[0] else 0

    def decision(self, rows: Rows) -> Choice | None:
        """Return the schedule to take; None where measurements are missing."""
        number = self.challenger(rows)
        if not number:
            return None if number is None else self.choices[0]
        if self.checks[0] not in rows or self.checks[number] not in rows:
            return None
        model, other = (rows[self.checks[n]].median_us for n in (0, number))
        return self.choices[number] if other <= GAIN * model else self.choices[0]

    def known(self, store: Store) -> Rows:
        """Return what the store has of both sets."""
        return store.get_many([*self.trials, *self.checks])


def search_of(workload: Workload, device: Device) -> Search:
    """Return the search of a workload."""
    from mpq_compile.kernels import matmul

    choices = matmul.choices(workload, device.tier, device.threads)

    def keys(operator: str) -> list[MeasurementKey]:
        tasks = [Task(operator=operator, workload=workload, choice=c) for c in choices]
        return [key_of(task, device) for task in tasks]

    return Search(workload=workload, choices=choices, trials=keys(TRIAL), checks=keys(CHECK))


def tune(
    workloads: Iterable[Workload], store: Store, device: Device, budget_s: float = BUDGET_S
) -> dict[str, Choice]:
    """Return the schedule of each workload that is decided, by ``workload.key``.

    Those without a decision are timed, the largest first, until ``budget_s`` seconds are over; a
    later call goes on. What was begun is ended, so it may take a few seconds longer. A store that
    cannot be written is only read.
    """
    unique = {workload.key: workload for workload in workloads}
    searches = [search_of(workload, device) for workload in unique.values()]
    decided = {s.workload.key: s.decision(s.known(store)) for s in searches}
    pending = [s for s in searches if decided[s.workload.key] is None]
    pending.sort(key=lambda search: -search.workload.macs)
    end = time.monotonic() + budget_s
    if pending and budget_s > 0 and not store.read_only:
        with counted(len(pending), "tune kernels") as advance:

            def work(search: Search, bench: Bench) -> None:
                if time.monotonic() < end:
                    _time(search, bench)
                    advance(1)

            distribute(pending, device, store, work)
        for search in pending:
            decided[search.workload.key] = search.decision(search.known(store))
    return {key: choice for key, choice in decided.items() if choice is not None}


def _time(search: Search, bench: Bench) -> None:
    """Time all schedules, then the fastest against the cost model's once more."""
    tasks = [Task(operator=TRIAL, workload=search.workload, choice=c) for c in search.choices]
    runs = bench.kernels(tasks)
    trials = time_in_rounds(dict(zip(search.trials, runs, strict=True)), bench, _PRECISION)
    number = search.challenger(trials)
    if number:
        pair = {search.checks[n]: runs[n] for n in (0, number)}
        time_in_rounds(pair, bench, _PRECISION)


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """Decisions of the database as of one moment: workload → schedule.

    Calling it gives None where the cost model's schedule stays, decided or not. A kernel that
    stores or reads a border has the schedule of the same work alone.
    """

    rows: Rows
    device: Device
    _found: dict[str, Choice | None] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, store: Store, device: Device) -> Schedules:
        """Take over what the store has decided."""
        return cls(rows=store.rows_on(device.fingerprint, (TRIAL, CHECK)), device=device)

    def __call__(self, workload: Workload) -> Choice | None:
        if not isinstance(workload, ConvWorkload | LinearWorkload):
            return None  # an embedding: its kernel has one schedule
        alone = workload.alone
        if not self.rows or geometry(alone).out_width != geometry(workload).out_width:
            return None
        if alone.key not in self._found:
            search = search_of(alone, self.device)
            choice = search.decision(self.rows)
            self._found[alone.key] = None if choice == search.choices[0] else choice
        return self._found[alone.key]

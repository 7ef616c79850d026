"""Measure beforehand: what planning a model needs, or a sweep over a new device.

Planning measures what it lacks. Doing so beforehand takes the time when nobody waits for a plan,
goes on where an interrupted run ended, and measures again what was taken while the machine was not
as it usually is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpq_compile.anchors import network_anchors
from mpq_compile.cost.accelerator import accelerator_table
from mpq_compile.cost.drift import REFERENCE
from mpq_compile.cost.measure import measure
from mpq_compile.cost.measurement import Measurement, MeasurementKey, Row
from mpq_compile.cost.store import Store
from mpq_compile.cost.sweep import sweep_tasks
from mpq_compile.cost.targets import TargetLike, resolve_target
from mpq_compile.cost.tune import CHECK, TRIAL
from mpq_compile.errors import PlanError, ProfileError, TimeRanOutError
from mpq_compile.session import Session


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """What profiling did.

    Args:
        needed: Measurements that were asked for; of those known so far where it is not complete.
        new: Those of them that were made now.
        unsettled: Costs among them that were taken while the machine was not as usual: the
            reference workload was off or, of whole networks, cores were waited for.
        half_width: Half of the widest 95 % interval of a median, as a share of the median.
        complete: False where the time ran out.
        seconds: How long it took.
        database: The file.
    """

    needed: int
    new: int
    unsettled: int
    half_width: float | None
    complete: bool
    seconds: float
    database: Path


def profile(
    model: Any,
    example_inputs: Any,
    calibration: Any,
    target: TargetLike = "local",
    candidates: Sequence[str] | None = None,
    budget_s: float | None = None,
    *,
    allow_float: bool = False,
    tuned: bool = True,
) -> Profiled:
    """Tune and time every kernel and every uniform network that planning the model needs.

    Args:
        model, example_inputs, calibration, target, candidates: As ``plan`` has them.
        budget_s: Stop measuring after this many seconds; run again to go on.
        allow_float: Run operators without integer rule in float instead of refusing them.
        tuned: Search schedules as well.

    Raises:
        ProfileError: The target is analytic, or the database cannot be written.
        DeviceError: A kernel computes something else than its oracle.
    """
    limit_s = time_limit(budget_s)
    session = Session(
        model,
        example_inputs,
        calibration,
        target=target,
        candidates=candidates,
        allow_float=allow_float,
        tuned=tuned,
    )
    if session.profile.kind == "analytic":
        raise _nothing_to_measure(str(target), "analytic")
    start = time.monotonic()
    with _RecordingStore() as store:
        complete = _measured(session, store, limit_s)
        return store.outcome(complete, time.monotonic() - start)


def sweep(
    target: TargetLike = "local",
    candidates: Sequence[str] | None = None,
    budget_s: float | None = None,
) -> Profiled:
    """Time kernels of representative shapes, which tell what others will take on the device.

    Args:
        target: As ``plan`` has it.
        candidates: Names, or None for all that the target supports.
        budget_s: Stop after this many seconds; run again to go on.

    Raises:
        ProfileError: The target is analytic, or the database cannot be written.
        DeviceError: A kernel computes something else than its oracle.
    """
    limit_s = time_limit(budget_s)
    found = resolve_target(target)
    if not found.profile.runs_networks:
        raise _nothing_to_measure(found.name, found.profile.kind)
    start = time.monotonic()
    tasks = sweep_tasks(found.profile, candidates)
    with _RecordingStore() as store:
        complete = True
        try:
            measure(tasks, store, found.device, budget_s=limit_s, again=True)
        except TimeRanOutError:
            complete = False
        return store.outcome(complete, time.monotonic() - start)


class _RecordingStore(Store):
    """A store that remembers which measurements were asked for, were there, and were made."""

    def __init__(self) -> None:
        self._asked: set[MeasurementKey] = set()
        self._known: dict[MeasurementKey, Measurement] = {}
        self._made: dict[MeasurementKey, Measurement] = {}
        super().__init__()

    def get_many(self, keys: Iterable[MeasurementKey]) -> dict[MeasurementKey, Measurement]:
        """Return what is known, and note what was asked for."""
        wanted = list(keys)
        self._asked.update(key for key in wanted if _is_asked_for(key))
        found = super().get_many(wanted)
        known = {k: v for k, v in found.items() if _is_asked_for(k) and k not in self._made}
        self._known.update(known)
        return found

    def put_many(self, rows: Iterable[Row]) -> int:
        """Store the rows, and note them."""
        given = list(rows)
        self._made.update((key, value) for key, value in given if _is_asked_for(key))
        return super().put_many(given)

    def outcome(self, complete: bool, seconds: float) -> Profiled:
        """Return what profiling has done."""
        present = self._known | self._made
        # Schedules are only compared with each other, in rounds that they share.
        costs = [v for key, v in present.items() if key.operator not in (TRIAL, CHECK)]
        widths = [value.half_width for value in costs if value.half_width is not None]
        return Profiled(
            needed=len(present if complete else self._asked),
            new=len(self._made),
            unsettled=sum(not value.settled for value in costs),
            half_width=max(widths, default=None),
            complete=complete,
            seconds=seconds,
            database=self.path,
        )


def _is_asked_for(key: MeasurementKey) -> bool:
    """The reference workload is measured along with whatever is asked for."""
    return key.operator != REFERENCE.operator


def _measured(session: Session, store: Store, limit_s: float) -> bool:
    """Tune kernels, time them, then whole networks; ask an accelerator's class for its layers.

    Returns:
        False where the time ran out.
    """
    try:
        return _measured_in_time(session, store, limit_s)
    except TimeRanOutError:
        return False


def _measured_in_time(session: Session, store: Store, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    if session.profile.kind == "accelerator":
        accelerator_table(session.network, session.choices, session.profile, store, limit_s)
        return True
    # Where the kernels are known from before, whole networks are what this run is for.
    known = session.costing.is_measured(store)
    session.costing.tune(store, limit_s)
    alone = session.costing.measured_in(store, end - time.monotonic(), again=True)
    if time.monotonic() >= end and not known:
        return False
    network_anchors(session, alone.costs, store, again=time.monotonic() < end)
    return True


def time_limit(budget_s: float | None, where: str = "budget_s") -> float:
    """Return a time in seconds, infinite for None; raise ``PlanError`` where it is not one."""
    if budget_s is None:
        return math.inf
    if not 0 < budget_s < math.inf:
        raise PlanError(
            "a time must be a positive number",
            where=where,
            expected="a finite number of seconds above 0",
            found=budget_s,
            remedy="correct the number, or leave it out",
        )
    return budget_s


def _nothing_to_measure(target: str, kind: str) -> ProfileError:
    known = {
        "analytic": "an analytic target is known by its equations: there is nothing to measure",
        "accelerator": "an accelerator's class is asked for the layers of a model, not for a sweep",
    }
    return ProfileError(
        known[kind],
        where=target,
        expected="a target whose kernels are timed, such as local",
        found=f"kind: {kind}",
        remedy="plan right away, or profile for local",
    )

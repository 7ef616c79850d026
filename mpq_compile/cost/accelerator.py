"""An accelerator that its owner times: a profile with ``reached: class`` and one class.

The class has one method, ``measure(workload) -> seconds``, and may have ``name``, ``version`` and
``close()``. It is made without arguments when something has to be measured, and closed after it.
Times go to the same database as all others, under the profile's name, the version and a digest of
the class's file, so that a changed file is measured anew and an unchanged one never again.
"""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Iterable

from mpq_compile.cost.accelerator_class import (
    Accelerator,
    AcceleratorClass,
    blamed,
    load_accelerator,
)
from mpq_compile.cost.accelerator_workload import Workload, accelerator_workload
from mpq_compile.cost.measurement import Measurement
from mpq_compile.cost.profile import Profile
from mpq_compile.cost.store import Store
from mpq_compile.cost.summary import measurement_of
from mpq_compile.cost.table import Choices, described_table
from mpq_compile.errors import DeviceError, TimeRanOutError
from mpq_compile.lock import timing_lock
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.types import Candidate, CostTable, Site

REPEATS = 5


def accelerator_table(
    network: Network,
    choices: Choices,
    profile: Profile,
    store: Store,
    budget_s: float = math.inf,
) -> CostTable:
    """Return the costs on an accelerator: each layer as its class times it, and a fixed time.

    Raises:
        TimeRanOutError: Not everything was measured in ``budget_s``; run again to go on.
        ProfileError: The class cannot be imported, or has no ``measure``.
        DeviceError: It failed, or returned what is no time; the message names the workload.
    """
    workloads = {
        (site.id, name): accelerator_workload(network, site, Candidate.parse(name))
        for site in network.sites
        for name in choices[site.id]
    }
    times = measure_workloads(workloads.values(), load_accelerator(profile), store, budget_s)

    def latency_us(site: Site, candidate: Candidate) -> float:
        return times[workloads[site.id, candidate.name]].median_us

    return described_table(network, choices, profile, latency_us)


def measure_workloads(
    workloads: Iterable[Workload],
    accelerator: AcceleratorClass,
    store: Store,
    budget_s: float = math.inf,
) -> dict[Workload, Measurement]:
    """Return the time of each workload; measures only what the store lacks, each stored at once."""
    keys = {workload: accelerator.key(workload) for workload in workloads}
    stored = store.get_many(keys.values())
    found = {workload: stored[key] for workload, key in keys.items() if key in stored}
    missing = [workload for workload in keys if workload not in found]
    if not missing:
        return found
    end = time.monotonic() + budget_s
    with accelerator.opened() as device:
        for workload in track(missing, f"measure {accelerator.profile}"):
            if time.monotonic() >= end:
                raise _ran_out(len(keys), len(found), budget_s)
            with timing_lock():
                found[workload] = measurement_of([1e6 * s for s in _timed(device, workload)])
            if not store.read_only:
                store.put(keys[workload], found[workload])
    return found


def _ran_out(wanted: int, known: int, budget_s: float) -> TimeRanOutError:
    return TimeRanOutError(
        "the time to measure ran out",
        expected=f"{wanted} layers within {budget_s:.0f} s",
        found=f"{known} measured and stored",
        remedy="run again to go on, or allow more time",
    )


def _timed(device: Accelerator, workload: Workload) -> list[float]:
    """Return times in seconds: ``REPEATS``, or the first two where they are the same.

    Simulators and calculators give one time always, and may take long for it.
    """
    times: list[float] = []
    while len(times) < REPEATS:
        with blamed(str(workload), "the accelerator's class failed to measure"):
            value = device.measure(workload)
        times.append(_checked_time(value, workload))
        if len(times) == 2 and times[0] == times[1]:
            break
    return times


def _checked_time(value: object, workload: Workload) -> float:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 < float(value) < float("inf"):  # type: ignore[arg-type]
        raise DeviceError(
            "the accelerator's class returned what is no time",
            where=str(workload),
            expected="seconds: a finite number above 0",
            found=repr(value),
            remedy="return the seconds of one run from measure, as a float",
        )
    return float(value)  # type: ignore[arg-type]

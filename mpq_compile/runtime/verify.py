"""Does an artifact keep its budget? Measured in fresh processes, judged by bootstrap."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mpq_compile.progress import counted
from mpq_compile.runtime.blocks import DRIFT, WAITED
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.environment import patience_s
from mpq_compile.runtime.timing import Timings
from mpq_compile.types import Verification

PROCESSES, BLOCKS = 5, 6
# While the interval is wider than this share of the estimate, more processes follow, up to so many
# times as many.
WIDE, MOST = 0.03, 3
_RESAMPLES = 4000
# The share of blocks that may be disturbed before nothing can be concluded, and the spread of
# blocks that says the same.
_UNSETTLED_SHARE, _UNSETTLED_DRIFT = 0.25, 0.5
# A network that is further above its budget than so many times is not blamed on the machine.
_MOST_SLOWED = 2.0
# The standard deviation of a normal sample over the median of its absolute deviations.
_NORMAL = 1.4826

Status = Literal["accepted", "rejected", "inconclusive", "unbounded"]
Statistic = Callable[[np.ndarray], float]


def measure_artifact(folder: Path, device: Device, processes: int = PROCESSES) -> list[Timings]:
    """Time ``folder`` in fresh processes of the device, one after the other.

    Those in which the machine is not as usual are repeated, see :func:`time_settled`. Processes are
    added while their median is uncertain, unless the machine is what makes it so. The reference
    and the width tell when to stop and the budget does not, so that no lucky moment is waited for.
    """
    with device.lock():
        timings = _settled_first(device, [folder], BLOCKS, processes, "verify latency")
        for _ in range((MOST - 1) * processes):
            if _width(timings) <= WIDE or not settled(timings):
                break
            found = device.time_networks([folder], BLOCKS)
            if _settled_by([found], _usual_ms([*timings, found])):
                timings.append(found)
    return timings


def _width(timings: Sequence[Timings]) -> float:
    """Return the width of the median's interval as a share of it."""
    found = _median(timings)
    return (found.upper - found.lower) / found.value


def time_settled(
    device: Device, folders: Sequence[Path], blocks: int, processes: int
) -> list[Timings]:
    """Time networks in several fresh processes in which the machine is as usual.

    A process in which it is not is repeated; after as many repeats as processes, or without
    patience (:func:`patience_s`) at once, the rest is as it is.
    """
    with device.lock():
        return _settled_first(device, folders, blocks, processes, "time networks")


def _settled_first(
    device: Device, folders: Sequence[Path], blocks: int, processes: int, title: str
) -> list[Timings]:
    good: list[Timings] = []
    other: list[Timings] = []
    most = 2 * processes if patience_s() else processes
    with counted(processes, title) as done:
        while len(good) < processes and len(good) + len(other) < most:
            found, before = [*good, *other, device.time_networks(folders, blocks)], len(good)
            # A later process may find what is usual, and that an earlier one was not.
            usual_ms = _usual_ms(found)
            good = [timing for timing in found if _settled_by([timing], usual_ms)]
            other = [timing for timing in found if not _settled_by([timing], usual_ms)]
            done(len(good) - before)
    return [*good, *other][:processes]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    lower: float
    upper: float


def bootstrap(
    runs: Sequence[Sequence[Sequence[float]]],
    statistic: Statistic,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the interval of the median over blocks of a statistic of each block.

    Processes are drawn with replacement, then blocks within each: blocks of one process are not
    independent of each other.

    Args:
        runs: Latencies by process, block and call, above zero; all processes have as many blocks.
        statistic: Of the calls of one block.
        level: Coverage of the interval.
        seed: The draws are the same for the same seed.
    """
    table = np.array([[statistic(np.asarray(block)) for block in run] for run in runs])
    processes, blocks = table.shape
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, processes, (_RESAMPLES, processes, 1))
    drawn = table[chosen, generator.integers(0, blocks, (_RESAMPLES, processes, blocks))]
    medians = np.median(drawn.reshape(_RESAMPLES, -1), axis=1)
    value = float(np.median(table))
    # Few processes resampled differ by less than few processes drawn anew. Times are widened by
    # ratio: no interval of a time reaches zero.
    wider = (processes / max(processes - 1, 1)) ** 0.5
    medians = value * (medians / value) ** wider
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    # Few blocks can put the interval beside the estimate.
    return Interval(value=value, lower=min(float(low), value), upper=max(float(high), value))


def _median(timings: Sequence[Timings]) -> Interval:
    """Return the interval of the median latency in ms."""
    return bootstrap([t.latencies_ms[0] for t in timings], lambda block: float(np.median(block)))


def judge(
    timings: Sequence[Timings],
    budget: Mapping[str, float],
    rounds: int = 1,
    device: str = "",
    profile_energy_mj: float | None = None,
) -> Verification:
    """Return the verdict on what :func:`measure_artifact` measured.

    Accepted where the upper end of the 95 % interval is within the budget, rejected where it is
    not; where the machine or the network itself did not settle, what is not accepted
    is inconclusive, unless even the lower end is above twice the budget.
    """
    runs = [timing.latencies_ms[0] for timing in timings]
    median = _median(timings)
    p95 = bootstrap(runs, lambda block: float(np.percentile(block, 95)))
    calls = np.concatenate([np.asarray(block) for run in runs for block in run])
    blocks = [float(np.median(block)) for run in runs for block in run]
    drift = max(blocks) / min(blocks) - 1
    known = [energy for t in timings if (energy := t.energy_mj[0]) is not None]
    energy = statistics.median(known) if known else profile_energy_mj
    limits = [(median, budget.get("latency_ms")), (p95, budget.get("latency_p95_ms"))]
    if known:  # what a profile says of energy was judged when the plan was made
        spread = Interval(value=statistics.median(known), lower=min(known), upper=max(known))
        limits.append((spread, budget.get("energy_mj")))
    calm = settled(timings) and drift <= _UNSETTLED_DRIFT
    status = _status(limits, calm)
    return Verification(
        latency_ms=median.value,
        latency_ms_lower95=median.lower,
        latency_ms_upper95=median.upper,
        latency_p95_ms=p95.value,
        latency_p95_ms_upper95=p95.upper,
        latency_p99_ms=float(np.percentile(calls, 99)),
        samples=len(calls),
        processes=len(timings),
        drift=drift,
        reference_drift=max(ms for t in timings for ms in t.reference_ms) / _usual_ms(timings) - 1,
        repeated=sum(timing.repeated for timing in timings),
        memory_bytes=round(statistics.median(timing.memory_bytes for timing in timings)),
        energy_mj=energy,
        energy_source="rapl" if known else None if energy is None else "profile",
        within_budget=None if status == "unbounded" else status == "accepted",
        status=status,
        rounds=rounds,
        device=device,
        process_spread=_process_spread(timings),
        waited=max((share for timing in timings for share in timing.waited), default=0.0),
        settled=calm,
    )


def _process_spread(timings: Sequence[Timings]) -> float:
    medians = np.array([statistics.median(timing.medians_ms(0)) for timing in timings])
    middle = np.median(medians)
    # Deviations from the sample's own median are too small, as with a variance over n.
    wider = (len(medians) / max(len(medians) - 1, 1)) ** 0.5
    return float(wider * _NORMAL * np.median(np.abs(medians - middle)) / middle)


def _status(limits: Sequence[tuple[Interval, float | None]], settled: bool) -> Status:
    bounded = [(interval, limit) for interval, limit in limits if limit is not None]
    if not bounded:
        return "unbounded"
    if all(interval.upper <= limit for interval, limit in bounded):
        return "accepted"
    hopeless = any(interval.lower > _MOST_SLOWED * limit for interval, limit in bounded)
    return "rejected" if settled or hopeless else "inconclusive"


def _usual_ms(timings: Sequence[Timings]) -> float:
    """Return the usual time of the reference, the least that is known."""
    known = [timing.known_ms for timing in timings if timing.known_ms is not None]
    return min([*(timing.usual_ms for timing in timings), *known])


def settled(timings: Sequence[Timings]) -> bool:
    """Tell whether most blocks had their cores, and beside them the reference its usual time."""
    return _settled_by(timings, _usual_ms(timings))


def _settled_by(timings: Sequence[Timings], usual_ms: float) -> bool:
    waited = [share for t in timings for share in t.waited or [0.0] * len(t.reference_ms)]
    beside = [ms for t in timings for ms in t.reference_ms]
    disturbed = [
        ms > DRIFT * usual_ms or share > WAITED for ms, share in zip(beside, waited, strict=True)
    ]
    return sum(disturbed) <= _UNSETTLED_SHARE * len(disturbed)


def verify_artifact(
    folder: Path,
    device: Device,
    budget: Mapping[str, float],
    processes: int = PROCESSES,
    rounds: int = 1,
    profile_energy_mj: float | None = None,
) -> Verification:
    """Measure ``folder`` and judge it against ``budget``: latency_ms, latency_p95_ms, energy_mj."""
    return judge(
        measure_artifact(folder, device, processes),
        budget,
        rounds,
        device.fingerprint,
        profile_energy_mj,
    )

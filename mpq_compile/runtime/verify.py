"""Does an artifact keep its latency budget? Measured in fresh processes, judged by bootstrap."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mpq_compile.progress import track
from mpq_compile.runtime.device import Device
from mpq_compile.types import Verification

PROCESSES, BLOCKS = 3, 6
_RESAMPLES = 2000
# Blocks that differ by more than this say that the machine was busy, not what the network costs.
_UNSETTLED = 0.5


# Latencies of single calls in ms, by process, block and call.
Runs = Sequence[Sequence[Sequence[float]]]


def measure_artifact(folder: Path, device: Device, processes: int = PROCESSES) -> Runs:
    """Time ``folder`` in fresh processes of the device, one after the other."""
    with device.lock():
        return [
            device.time_networks([folder], BLOCKS)[0]
            for _ in track(range(processes), "verify latency")
        ]


def bootstrap(
    runs: Sequence[Sequence[float]], level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of the median over processes × blocks.

    Processes are drawn with replacement, then blocks within each: blocks of one process are not
    independent of each other.
    """
    generator = np.random.default_rng(seed)
    medians = []
    for _ in range(_RESAMPLES):
        chosen = [runs[i] for i in generator.integers(0, len(runs), len(runs))]
        drawn = [np.asarray(run)[generator.integers(0, len(run), len(run))] for run in chosen]
        medians.append(np.median(np.concatenate(drawn)))
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def judge(runs: Runs, budget: Mapping[str, float], rounds: int = 1) -> Verification:
    """Return the verdict on what :func:`measure_artifact` measured.

    Accepted where the upper end of the 95 % interval is within the budget. Where blocks differ
    so much that the interval straddles the budget, the answer is inconclusive.
    """
    medians = [[statistics.median(block) for block in run] for run in runs]
    everything = np.concatenate([np.asarray(run) for run in medians])
    low, high = bootstrap(medians)
    p95_runs = [[float(np.percentile(block, 95)) for block in run] for run in runs]
    p95 = float(np.median(np.concatenate([np.asarray(run) for run in p95_runs])))
    p95_low, p95_high = bootstrap(p95_runs)
    drift = float(everything.max() / everything.min() - 1)
    limits = [
        (low, high, budget.get("latency_ms")),
        (p95_low, p95_high, budget.get("latency_p95_ms")),
    ]
    bounded = [(lower, upper, limit) for lower, upper, limit in limits if limit is not None]
    status: Literal["accepted", "rejected", "inconclusive", "unbounded"] = "unbounded"
    if bounded:
        within = all(upper <= limit for _, upper, limit in bounded)
        hopeless = any(lower > limit for lower, _, limit in bounded)
        unsettled = drift > _UNSETTLED and not hopeless
        status = "accepted" if within else "inconclusive" if unsettled else "rejected"
    return Verification(
        latency_ms=float(np.median(everything)),
        latency_ms_lower95=low,
        latency_ms_upper95=high,
        latency_p95_ms=p95,
        samples=sum(len(block) for run in runs for block in run),
        processes=len(runs),
        drift=drift,
        within_budget=None if status == "unbounded" else status == "accepted",
        status=status,
        rounds=rounds,
    )


def verify_artifact(
    folder: Path, device: Device, budget: Mapping[str, float], processes: int = PROCESSES
) -> Verification:
    """Measure ``folder`` and judge it against ``budget`` (latency_ms, latency_p95_ms)."""
    return judge(measure_artifact(folder, device, processes), budget)

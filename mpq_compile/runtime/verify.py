"""Does an artifact keep its latency budget? Measured in fresh processes, judged by bootstrap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mpq_compile.errors import DeviceError
from mpq_compile.lock import timing_lock
from mpq_compile.progress import track
from mpq_compile.types import Verification

PROCESSES = 3
_RESAMPLES = 2000
_TIMEOUT_S = 300
# Blocks that differ by more than this say that the machine was busy, not what the network costs.
_UNSETTLED = 0.5


def measure_artifact(folder: Path, processes: int = PROCESSES) -> list[dict[str, Any]]:
    """Time ``folder`` in fresh processes, one after the other; return their summaries."""
    with timing_lock():
        return [_one_process(folder) for _ in track(range(processes), "verify latency")]


def _one_process(folder: Path) -> dict[str, Any]:
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    command = [sys.executable, "-m", "mpq_compile.runtime.timing", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            "the network did not finish in time",
            where=str(folder),
            expected=f"an answer within {_TIMEOUT_S} s",
            remedy="run it with `mpq run` to see how long one call takes",
        ) from error
    if done.returncode:
        raise DeviceError(
            "timing the artifact in a fresh process failed",
            where=str(folder),
            found=done.stderr.strip()[-600:],
            remedy="run `mpq doctor`",
        )
    return json.loads(done.stdout.splitlines()[-1])


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


def judge(
    summaries: Sequence[Mapping[str, Any]], budget: Mapping[str, float], rounds: int = 1
) -> Verification:
    """Return the verdict on measured summaries.

    Accepted where the upper end of the 95 % interval is within the budget. Where blocks differ
    so much that the interval straddles the budget, the answer is inconclusive.
    """
    runs = [summary["medians_ms"] for summary in summaries]
    everything = np.concatenate([np.asarray(run) for run in runs])
    low, high = bootstrap(runs)
    p95_runs = [summary["p95_ms"] for summary in summaries]
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
        samples=sum(int(summary["calls"]) for summary in summaries),
        processes=len(summaries),
        drift=drift,
        within_budget=None if status == "unbounded" else status == "accepted",
        status=status,
        rounds=rounds,
    )


def verify_artifact(
    folder: Path, budget: Mapping[str, float], processes: int = PROCESSES
) -> Verification:
    """Measure ``folder`` and judge it against ``budget`` (latency_ms, latency_p95_ms)."""
    return judge(measure_artifact(folder, processes), budget)

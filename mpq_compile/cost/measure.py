"""Latency of kernels on this machine, through TVM: what the cost table is made of."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence

from mpq_compile.cost.measurement import Measurement, MeasurementKey, utc_now
from mpq_compile.cost.store import Store
from mpq_compile.errors import DeviceError
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.progress import track
from mpq_compile.runtime.device import Device
from mpq_compile.runtime.fingerprint import kernel_hash, toolchain_hash
from mpq_compile.runtime.kernel_timing import Run, Task, Workload

_ROUNDS = 7
_RETRIES = 3
# A round in which the reference workload is slower than this is measured again.
_DRIFT = 1.15
_REFERENCE = LinearWorkload(rows=16, in_features=256, out_features=256, compute="fp32", out="fp32")
_CHUNK = 24


def kernel_candidate(workload: Workload) -> str:
    """Return the candidate whose kernel this is: several candidates may share one kernel."""
    if isinstance(workload, ConvertWorkload):
        return f"{workload.source}-{workload.target}"
    if isinstance(workload, QuantizeRowsWorkload):
        return "fp32-rows"
    if workload.compute in ("fp32", "bf16"):
        return workload.compute
    bits = workload.weight_bits if isinstance(workload, LinearWorkload) else 8
    return f"w{bits}a{16 if workload.compute == 'weight_only' else 8}"


def key_of(task: Task, device: Device) -> MeasurementKey:
    """Return the key under which a task's time is stored; a schedule is part of the shape."""
    shape = task.workload.key
    return MeasurementKey(
        device=device.fingerprint,
        toolchain=toolchain_hash(),
        kernels=kernel_hash(),
        operator=task.operator,
        shape=shape if task.choice is None else f"{shape}/{task.choice}",
        candidate=kernel_candidate(task.workload),
    )


def measure(
    tasks: Iterable[Task],
    store: Store,
    device: Device,
    *,
    budget_s: float = math.inf,
) -> dict[str, Measurement]:
    """Return the latency of each task by ``workload.key``; times only what the store lacks.

    Each chunk of kernels is stored as soon as it is timed, so an interrupted run loses little.

    Args:
        tasks: What is needed.
        store: Where measurements are kept.
        device: Where they run.
        budget_s: Stop measuring after this many seconds.

    Raises:
        DeviceError: The time ran out before everything was measured; run again to go on.
    """
    by_key = {key_of(task, device): task for task in tasks}
    known = store.get_many(by_key)
    missing = [key for key in by_key if key not in known]
    end = time.monotonic() + budget_s
    chunks = [missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK)]
    for chunk in track(chunks, "profile kernels"):
        if time.monotonic() > end:
            raise DeviceError(
                "the time to measure ran out",
                expected=f"{len(missing)} kernels within {budget_s:.0f} s",
                found=f"{sum(k in known for k in missing)} measured and stored",
                remedy="run again to go on, or allow more time",
            )
        measured = _measure_chunk([by_key[key] for key in chunk], device)
        rows = list(zip(chunk, measured, strict=True))
        store.put_many(rows)
        known.update(rows)
    return {by_key[key].workload.key: value for key, value in known.items()}


def _measure_chunk(tasks: Sequence[Task], device: Device) -> list[Measurement]:
    return time_side_by_side(device.kernels(tasks), reference_run(device), device)


def time_side_by_side(runs: Sequence[Run], reference: Run, device: Device) -> list[Measurement]:
    """Time kernels in turns: each round visits every kernel once, with the reference."""
    with device.lock():
        _settle(reference)
        samples: list[list[float]] = [[] for _ in runs]
        usual = statistics.median(reference.time() for _ in range(5))
        for _ in range(_ROUNDS):
            for _attempt in range(_RETRIES):
                times = [run.time() for run in runs]
                if reference.time() <= usual * _DRIFT:
                    break
            for sample, seconds in zip(samples, times, strict=True):
                sample.append(seconds * 1e6)
    clock_mhz = device.conditions().clock_mhz
    return [_statistics(sample, clock_mhz) for sample in samples]


def reference_run(device: Device) -> Run:
    """Return the reference workload, compiled: its time tells whether the machine is as usual."""
    return device.kernels([Task(operator="reference", workload=_REFERENCE)])[0]


def _settle(reference: Run) -> None:
    """A fresh process runs slowly at first: repeat until two blocks agree, a second at most."""
    end, before = time.monotonic() + 1.0, reference.time()
    while time.monotonic() < end:
        now = reference.time()
        if abs(now - before) <= 0.03 * before:
            return
        before = now


def _statistics(sample: Sequence[float], clock_mhz: float | None) -> Measurement:
    return Measurement(
        count=len(sample),
        median_us=statistics.median(sample),
        mean_us=statistics.fmean(sample),
        variance=statistics.variance(sample) if len(sample) > 1 else 0.0,
        min_us=min(sample),
        clock_mhz=clock_mhz,
        time=utc_now(),
    )

"""Latency of kernels on this machine, through TVM: what the cost table is made of."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpq_compile.cost.fingerprint import device_fingerprint, kernel_hash, toolchain_hash
from mpq_compile.cost.measurement import Measurement, MeasurementKey, utc_now
from mpq_compile.cost.store import Store
from mpq_compile.errors import DeviceError
from mpq_compile.kernels import packing
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.lock import timing_lock
from mpq_compile.progress import track
from mpq_compile.runtime.threads import thread_count

Workload = ConvWorkload | LinearWorkload | ConvertWorkload | QuantizeRowsWorkload
# Times one block of calls; seconds a call.
Run = Callable[[], float]

# A block of calls this long makes the clock's resolution and the call's overhead negligible.
_BLOCK_S = 2e-3
_ROUNDS = 7
_RETRIES = 3
# A round in which the reference workload is slower than this is measured again.
_DRIFT = 1.15
_REFERENCE = LinearWorkload(rows=16, in_features=256, out_features=256, compute="fp32", out="fp32")
_DTYPES = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}
_CHUNK = 24


@dataclass(frozen=True, kw_only=True)
class Task:
    """One workload to time, and the operator it is filed under.

    ``choice`` is the schedule of a matrix multiply; None is the cost model's.
    """

    operator: str
    workload: Workload
    choice: Choice | None = None


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


def key_of(task: Task, tier: Tier, threads: int) -> MeasurementKey:
    """Return the key under which a task's time is stored; a schedule is part of the shape."""
    shape = task.workload.key
    return MeasurementKey(
        device=device_fingerprint(tier=tier.name, threads=threads),
        toolchain=toolchain_hash(),
        kernels=kernel_hash(),
        operator=task.operator,
        shape=shape if task.choice is None else f"{shape}/{task.choice}",
        candidate=kernel_candidate(task.workload),
    )


def measure(
    tasks: Iterable[Task],
    store: Store,
    tier: Tier,
    *,
    budget_s: float = math.inf,
) -> dict[str, Measurement]:
    """Return the latency of each task by ``workload.key``; times only what the store lacks.

    Each chunk of kernels is stored as soon as it is timed, so an interrupted run loses little.

    Args:
        tasks: What is needed.
        store: Where measurements are kept.
        tier: Tier of the kernels.
        budget_s: Stop measuring after this many seconds.

    Raises:
        DeviceError: The time ran out before everything was measured; run again to go on.
    """
    threads = thread_count()
    by_key = {key_of(task, tier, threads): task for task in tasks}
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
        measured = _measure_chunk([by_key[key] for key in chunk], tier, threads)
        rows = list(zip(chunk, measured, strict=True))
        store.put_many(rows)
        known.update(rows)
    return {by_key[key].workload.key: value for key, value in known.items()}


def _measure_chunk(tasks: Sequence[Task], tier: Tier, threads: int) -> list[Measurement]:
    runs = [runner(task, tier, threads) for task in tasks]
    return time_side_by_side(runs, reference_runner(tier, threads))


def time_side_by_side(runs: Sequence[Run], reference: Run) -> list[Measurement]:
    """Time kernels in turns: each round visits every kernel once, with the reference."""
    with timing_lock():
        _settle(reference)
        samples: list[list[float]] = [[] for _ in runs]
        usual = statistics.median(reference() for _ in range(5))
        for _ in range(_ROUNDS):
            for _attempt in range(_RETRIES):
                times = [run() for run in runs]
                if reference() <= usual * _DRIFT:
                    break
            for sample, seconds in zip(samples, times, strict=True):
                sample.append(seconds * 1e6)
    return [_statistics(sample) for sample in samples]


def reference_runner(tier: Tier, threads: int) -> Run:
    """Return the reference workload, compiled: its time tells whether the machine is as usual."""
    return runner(Task(operator="reference", workload=_REFERENCE), tier, threads)


def _settle(reference: Run) -> None:
    """A fresh process runs slowly at first: repeat until two blocks agree, a second at most."""
    end, before = time.monotonic() + 1.0, reference()
    while time.monotonic() < end:
        now = reference()
        if abs(now - before) <= 0.03 * before:
            return
        before = now


def _statistics(sample: Sequence[float]) -> Measurement:
    return Measurement(
        count=len(sample),
        median_us=statistics.median(sample),
        mean_us=statistics.fmean(sample),
        variance=statistics.variance(sample) if len(sample) > 1 else 0.0,
        min_us=min(sample),
        clock_mhz=_clock_mhz(),
        time=utc_now(),
    )


def _clock_mhz() -> float | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return statistics.fmean(clocks) if clocks else None


def runner(task: Task, tier: Tier, threads: int) -> Run:
    """Compile a kernel; return a function that times one block and gives seconds a call."""
    import tvm

    from mpq_compile.lower.emit import kernel_function

    function = kernel_function(task.workload, tier, threads, task.choice)
    function = function.with_attr("global_symbol", "main")
    if tier.dot == "amx":
        from mpq_compile.runtime.executor import request_amx

        request_amx()
    built = tvm.compile(function, target=tvm.target.Target(tier.target(threads)))
    arguments = [tvm.runtime.tensor(array) for array in _arguments(task.workload, tier)]
    call = built["main"]
    call(*arguments)
    start = time.perf_counter()
    call(*arguments)
    once = max(time.perf_counter() - start, 1e-7)
    number = max(3, min(2000, math.ceil(_BLOCK_S / once)))
    evaluate = built.mod.time_evaluator("main", tvm.cpu(), number=number, repeat=1)
    return lambda: float(evaluate(*arguments).mean)


def _arguments(workload: Workload, tier: Tier) -> list[np.ndarray]:
    """Return arguments of the right sizes; zero records make every result finite."""
    generator = np.random.default_rng(0)

    def filled(size: int, dtype: str) -> np.ndarray:
        if dtype == "float32":
            return generator.standard_normal(size).astype(np.float32)
        if dtype == "uint16":
            # Small integers would be denormal numbers, with which some processors are slow.
            return packing.bf16_bits(generator.standard_normal(size))
        return generator.integers(0, 100, size).astype(dtype)

    if isinstance(workload, ConvertWorkload):
        record = np.zeros(packing.SCALAR_WORDS, np.int32)
        output = np.zeros(workload.size, _DTYPES[workload.target])
        return [filled(workload.size, _DTYPES[workload.source]), record, output]
    if isinstance(workload, QuantizeRowsWorkload):
        size, rows = workload.rows * workload.features, workload.rows
        return [filled(size, "float32"), np.zeros(size, np.uint8), np.zeros(rows, np.float32)]
    source = {"int8": "u8", "weight_only": "bf16"}.get(workload.compute, workload.compute)
    elements, dtype = packing.packed_weight_size(workload, tier)
    arguments = [
        filled(workload.input_size, _DTYPES[source]),
        filled(elements, dtype),
        np.zeros(packing.record_words(workload, tier), np.int32),
    ]
    if isinstance(workload, LinearWorkload) and workload.row_scales:
        arguments.append(np.ones(workload.rows, np.float32))
    if workload.residual:
        arguments.append(filled(workload.output_size, _DTYPES[workload.residual]))
    return [*arguments, np.zeros(workload.output_size, _DTYPES[workload.out])]


def latencies_us(measured: Mapping[str, Measurement]) -> dict[str, float]:
    """Return the median of each measurement, by workload key."""
    return {key: value.median_us for key, value in measured.items()}

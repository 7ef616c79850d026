"""Made-up measurements, and the writers that run in other processes."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier
from pathlib import Path

from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.store import Store


def key(number: int = 0, candidate: str = "w8a8") -> MeasurementKey:
    return MeasurementKey(
        device="x86_64-test-2c-2t-vnni-00000000",
        toolchain="toolchain",
        kernels="kernels",
        operator="conv2d",
        shape=f"1x{number}x28x28",
        candidate=candidate,
    )


def measured(median_us: float = 5.0, *, second: int = 0, count: int = 30) -> Measurement:
    return Measurement(
        count=count,
        median_us=median_us,
        mean_us=median_us + 0.125,
        variance=0.25,
        min_us=median_us / 2,
        clock_mhz=None if second % 2 else 2600.0,
        time=f"2025-01-31T12:00:{second:02d}.000000+00:00",
    )


def write_many(path: Path, barrier: Barrier, first: int, count: int) -> None:
    """Open the store as the others do, and put row after row, each in its own transaction."""
    barrier.wait(timeout=20)
    with Store(path) as store:
        for number in range(first, first + count):
            store.put(key(number), measured(float(number + 1)))
            store.put(key(-1), measured(float(number + 1), second=number % 60))


def create_many(folder: Path, barrier: Barrier, number: int, rounds: int) -> None:
    """Create store after store at the same moment as the others, and write one row to each."""
    for turn in range(rounds):
        barrier.wait(timeout=20)
        with Store(folder / f"{turn}.sqlite") as store:
            store.put(key(number), measured())


def open_store(path: Path, barrier: Barrier) -> None:
    """Open the store at the same moment as the others, and write one row."""
    barrier.wait(timeout=20)
    with Store(path) as store:
        store.put(key(-1), measured())

"""This machine with real kernels and made-up times, and processes that profile on it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpq_compile.cost.drift import REFERENCE
from mpq_compile.cost.measure import measure
from mpq_compile.cost.rounds import Precision
from mpq_compile.cost.store import Store
from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.runtime.device import Device, LocalDevice
from mpq_compile.runtime.kernel_timing import Run, Task

FEW_ROUNDS = Precision(relative=0.0, least=3, most=5, repeats=6)
LONG = Precision(relative=0.0, least=30, most=30)
REFERENCE_S = 20e-6


def tasks(count: int = 3) -> list[Task]:
    """Return small kernels."""
    workloads = [
        LinearWorkload(rows=1, in_features=16 * (n + 1), out_features=8) for n in range(count)
    ]
    return [Task(operator="linear", workload=workload) for workload in workloads]


def steady(task: Task) -> float:
    """Return the same seconds every time: 20 µs for the reference, 10 µs for any other kernel."""
    return REFERENCE_S if task == REFERENCE else 10e-6


@dataclass(frozen=True)
class TimedRun:
    """A kernel whose result is real and whose time is made up."""

    run: Run
    seconds: Callable[[], float]

    def time(self) -> float:
        return self.seconds()

    def outputs(self) -> list[np.ndarray]:
        return self.run.outputs()


class Scripted(LocalDevice):
    """This machine, with the times that ``seconds`` gives for each block of a task."""

    def __init__(
        self,
        seconds: Callable[[Task], float] = steady,
        *,
        name: str = "scripted",
        workers: Sequence[Device] = (),
        alone: bool = True,
    ) -> None:
        self.name = name
        self._seconds = seconds
        self._workers = workers
        self._alone = alone

    def workers(self) -> Sequence[Device]:
        return self._workers or [self]

    def lock(self) -> AbstractContextManager[None]:
        return super().lock() if self._alone else nullcontext()

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        runs = super().kernels(tasks)
        return [
            TimedRun(run, lambda task=task: self._seconds(task))
            for task, run in zip(tasks, runs, strict=True)
        ]


class Waves:
    """Times of a device that is ``factor`` times slower between two looks at any kernel."""

    def __init__(self, first: int, last: int, factor: float) -> None:
        self.slow: list[float] = []
        self._count = itertools.count()
        self._first, self._last, self._factor = first, last, factor

    def __call__(self, task: Task) -> float:
        number = next(self._count)
        # Distinct, so that a sample can be recognized; the same to a thousandth.
        seconds = steady(task) * (1 + 1e-6 * number)
        if not self._first <= number < self._last:
            return seconds
        if task != REFERENCE:
            self.slow.append(seconds * self._factor * 1e6)
        return seconds * self._factor


def slowly(task: Task) -> float:
    """Take some time, so that another process can look on."""
    time.sleep(2e-3)
    return steady(task)


def start(database: Path, count: int, cache: Path) -> subprocess.Popen[str]:
    """Profile in another process: ``count`` kernels in 30 rounds each."""
    environment = os.environ | {"MPQ_DB": str(database), "XDG_CACHE_HOME": str(cache)}
    folder = Path(__file__).parent
    paths = [str(folder), str(folder.parents[1])]
    return subprocess.Popen(
        [sys.executable, __file__, str(count)],
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    with Store() as store:
        measure(tasks(int(sys.argv[1])), store, Scripted(slowly), precision=LONG)

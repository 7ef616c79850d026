"""A kernel's time is believed only where its result is the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from devices import tasks

from mpq_compile.cost.exactness import check_exact
from mpq_compile.cost.measure import measure
from mpq_compile.cost.store import Store
from mpq_compile.cost.tune import tune
from mpq_compile.errors import DeviceError
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.runtime.device import LocalDevice
from mpq_compile.runtime.kernel_timing import Run, Task, Workload

LARGE = ConvWorkload(
    batch=1, height=40, width=40, in_channels=256, out_channels=300, kernel=(3, 3),
    padding=(1, 1, 1, 1), residual="u8",
)  # fmt: skip
WORKLOADS: tuple[Workload, ...] = (
    LARGE,  # some of its channels are compared
    ConvWorkload(batch=1, height=9, width=9, in_channels=8, out_channels=8, groups=8,
                 kernel=(3, 3), border=(1, 1, 1, 1)),
    ConvWorkload(batch=2, height=6, width=7, in_channels=3, out_channels=20, kernel=(3, 3),
                 padding=(1, 1, 1, 1), bordered_input=True, compute="bf16", out="bf16"),
    LinearWorkload(rows=5, in_features=40, out_features=24, compute="fp32", out="fp32"),
    LinearWorkload(rows=2, in_features=64, out_features=24, weight_bits=4, group_size=32),
    LinearWorkload(rows=3, in_features=64, out_features=24, row_scales=True, out="fp32"),
    LinearWorkload(rows=1, in_features=64, out_features=24, weight_bits=2, compute="weight_only",
                   out="bf16", residual="bf16"),
    ConvertWorkload(size=1000, source="fp32", target="u8"),
    ConvertWorkload(size=999, source="u8", target="bf16"),
    QuantizeRowsWorkload(rows=3, features=50),
)  # fmt: skip


def tasks_of(workloads: Sequence[Workload]) -> list[Task]:
    return [Task(operator="test", workload=workload) for workload in workloads]


def test_kernels_of_this_machine_are_right_and_none_gives_zeros_only() -> None:
    wanted = tasks_of(WORKLOADS)
    runs = LocalDevice().kernels(wanted)
    check_exact(zip(wanted, runs, strict=True), "local")
    for run in runs:
        assert all(len(np.unique(output)) > 2 for output in run.outputs())


@dataclass(frozen=True)
class SpoiledRun:
    """A kernel whose result goes wrong on its way."""

    run: Run
    spoil: Callable[[np.ndarray], None]

    def time(self) -> float:
        return self.run.time()

    def outputs(self) -> list[np.ndarray]:
        outputs = [output.copy() for output in self.run.outputs()]
        self.spoil(outputs[-1])
        return outputs


class WrongDevice(LocalDevice):
    """A device that computes one kernel, or all of them, wrongly."""

    name = "wrong"

    def __init__(self, spoil: Callable[[np.ndarray], None], victim: Task | None = None) -> None:
        self._spoil, self._victim = spoil, victim

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        return [
            SpoiledRun(run, self._spoil) if self._victim in (None, task) else run
            for task, run in zip(tasks, super().kernels(tasks), strict=True)
        ]


def last_code_off_by_one(output: np.ndarray) -> None:
    output[-1] += np.uint8(1)


def not_a_number(output: np.ndarray) -> None:
    output[0] = np.nan


@pytest.mark.parametrize(
    "workload, found",
    [(LARGE, "1 of 57600 values differ"), (WORKLOADS[1], "a border that holds more than 55")],
    ids=["inside", "border"],
)
def test_one_wrong_code_is_enough(workload: Workload, found: str) -> None:
    wanted = tasks_of([workload])
    runs = WrongDevice(last_code_off_by_one).kernels(wanted)
    with pytest.raises(DeviceError, match="something else than its oracle") as caught:
        check_exact(zip(wanted, runs, strict=True), "wrong")
    assert caught.value.where == f"wrong: test {workload.key}"
    assert caught.value.found == found


def test_not_a_number_is_wrong() -> None:
    wanted = tasks_of([WORKLOADS[3]])
    runs = WrongDevice(not_a_number).kernels(wanted)
    with pytest.raises(DeviceError, match="something else than its oracle") as caught:
        check_exact(zip(wanted, runs, strict=True), "wrong")
    assert caught.value.found == "1 of 120 values differ"


def test_nothing_of_a_wrong_device_is_stored(tmp_path: Path) -> None:
    wanted = tasks()
    device = WrongDevice(last_code_off_by_one, victim=wanted[1])
    with Store(tmp_path / "m.sqlite") as store:
        with pytest.raises(DeviceError) as caught:
            measure(wanted, store, device)
        assert caught.value.where == f"wrong: linear {wanted[1].workload.key}"
        assert len(store) == 0
        assert store.generations() == []


def test_a_schedule_that_computes_nonsense_is_not_tried(tmp_path: Path) -> None:
    with Store(tmp_path / "m.sqlite") as store:
        with pytest.raises(DeviceError) as caught:
            tune([LARGE], store, WrongDevice(last_code_off_by_one), 60)
        assert caught.value.where is not None and LARGE.key in caught.value.where
        assert store.generations() == []

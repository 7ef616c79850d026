"""The sweep: representative kernels, all of them ones that the target has."""

from __future__ import annotations

from collections import Counter

import pytest

from mpq_compile.cost.profile import load_profile
from mpq_compile.cost.sweep import CONVOLUTIONS, DEPTHWISE, LINEARS, sweep_tasks
from mpq_compile.errors import PlanError, ProfileError
from mpq_compile.kernels.workload import ConvWorkload


@pytest.mark.parametrize("profile", ["x86_64_vnni", "x86_64_amx", "aarch64_i8mm", "generic"])
def test_every_operator_is_there_and_no_kernel_twice(profile: str) -> None:
    tasks = sweep_tasks(load_profile(profile))
    assert 150 <= len(tasks) <= 260
    assert len({task.workload.key for task in tasks}) == len(tasks)
    count = Counter(task.operator for task in tasks)
    assert set(count) == {"conv2d", "depthwise_conv2d", "linear", "quantize_rows"}
    assert count["conv2d"] == 3 * len(CONVOLUTIONS)
    assert count["depthwise_conv2d"] == 3 * len(DEPTHWISE)


def test_shapes_are_those_of_the_tables() -> None:
    tasks = sweep_tasks(load_profile("x86_64_vnni"), ["w8a8"])
    assert len(tasks) == len(CONVOLUTIONS) + len(DEPTHWISE) + len(LINEARS)
    for row, task in zip(CONVOLUTIONS, tasks, strict=False):
        size, inputs, outputs, kernel, stride = row
        work = task.workload
        assert isinstance(work, ConvWorkload)
        assert (work.height, work.in_channels, work.out_channels) == (size, inputs, outputs)
        assert (work.kernel, work.out_height) == ((kernel, kernel), -(-size // stride))


def test_only_what_the_target_supports() -> None:
    vnni = load_profile("x86_64_vnni")
    assert {task.operator for task in sweep_tasks(vnni, ["w8a8d"])} == {"linear", "quantize_rows"}
    with pytest.raises(ProfileError, match="supports none"):
        sweep_tasks(vnni, ["w4a4"])
    with pytest.raises(PlanError, match="not a candidate"):
        sweep_tasks(vnni, ["w9"])

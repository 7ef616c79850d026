"""Networks and kernels built for a CPU of another architecture, which is not here."""

from __future__ import annotations

import importlib.util
import platform
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from operator_nets import CASES

import mpq_compile as mpq
from mpq_compile.errors import DeviceError, LoweringError
from mpq_compile.kernels.elementwise_workload import ConvertWorkload
from mpq_compile.kernels.tier import TIERS
from mpq_compile.runtime.kernel_timing import Task, write_kernel

ARM_HERE = platform.machine() in TIERS["neon"].machine
TARGET = "x86_64_vnni" if ARM_HERE else "aarch64_i8mm"
TIER = "vnni" if ARM_HERE else "neon_i8mm_bf16"
ELF_MACHINE = {"x86_64_vnni": 62, "aarch64_i8mm": 183}[TARGET]

needs_zig = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang: pip install -e .[cross]"
)


def elf_machine(path: Path) -> int:
    """Return the architecture that a library is for."""
    return struct.unpack_from("<H", path.read_bytes(), 18)[0]


@pytest.fixture(scope="module")
def network() -> mpq.CompiledNetwork:
    """A mixed network for the other architecture."""
    case = CASES["mobile"]
    sites = mpq.assign(case.model(), case.inputs(2), [case.inputs(8)], "w8a8").plan.assignment
    names = ("w8a8", "w4a8", "bf16")
    mixed = {site: names[index % len(names)] for index, site in enumerate(sites)}
    return mpq.assign(case.model(), case.inputs(2), [case.inputs(8)], mixed, target=TARGET)


@needs_zig
def test_the_artifact_is_for_the_other_architecture(
    network: mpq.CompiledNetwork, tmp_path: Path
) -> None:
    assert elf_machine(network.save(tmp_path / "net") / "network.so") == ELF_MACHINE
    assert {row.tier for row in network.audit} == {TIER}
    assert network.manifest.notes[0] == f"{TARGET} was not at hand: built, and never run"
    with pytest.raises(DeviceError, match="which this CPU does not execute"):
        mpq.load(tmp_path / "net")


@needs_zig
def test_it_is_exported_for_programs_without_python(
    network: mpq.CompiledNetwork, tmp_path: Path
) -> None:
    folder = network.export_native(tmp_path / "net")
    assert f"tier {TIER}\n" in (folder / "network.txt").read_text(encoding="ascii")


@needs_zig
def test_it_does_not_run_here(network: mpq.CompiledNetwork) -> None:
    with pytest.raises(DeviceError, match="not at hand: cannot run a network"):
        network(*CASES["mobile"].inputs(2))


@needs_zig
def test_kernels_are_linked_for_it_too(tmp_path: Path) -> None:
    task = Task(operator="convert", workload=ConvertWorkload(size=64, source="u8", target="fp32"))
    write_kernel(task, TIERS[TIER], 2, tmp_path / "kernel.so")
    assert elf_machine(tmp_path / "kernel.so") == ELF_MACHINE


def test_kernels_of_this_architecture_need_no_other_linker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpq_compile.lower.linker.find_spec", lambda name: None)
    task = Task(operator="convert", workload=ConvertWorkload(size=64, source="u8", target="fp32"))
    write_kernel(task, TIERS["generic"], 2, tmp_path / "kernel.so")
    with pytest.raises(LoweringError, match=r"pip install 'mpq_compile\[cross\]'"):
        write_kernel(task, TIERS[TIER], 2, tmp_path / "other.so")


def test_a_plan_for_it_needs_the_device() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    x = torch.from_numpy(np.ones((2, 8), np.float32))
    with pytest.raises(DeviceError, match="not at hand") as caught:
        mpq.plan(model, x, [x], target=TARGET, budget={"latency_ms": 1.0})
    assert "RPC" in str(caught.value)

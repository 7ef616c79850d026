"""Where the time of a network goes: every kernel of it, whose times add up to the whole."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mpq_compile as mpq
from mpq_compile.kernels.tier import tier_named
from mpq_compile.lower.interface import Step
from mpq_compile.runtime import artifact as artifact_files
from mpq_compile.runtime.absent import AbsentDevice
from mpq_compile.runtime.artifact import TRACE, open_artifact, seal
from mpq_compile.runtime.executor import Executor
from mpq_compile.runtime.native import as_tensor
from mpq_compile.runtime.threads import thread_count
from mpq_compile.runtime.timing import example_inputs
from mpq_compile.runtime.trace import Trace, read_trace, summary, trace_folder


class Parts(nn.Module):
    """Convolutions of two sizes, a norm and a softmax in float, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(3, 64, 3, padding=1)
        self.small = nn.Conv2d(64, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.small(torch.relu(self.large(x))).mean((2, 3))
        return torch.softmax(self.head(self.norm(x)), 1)


@pytest.fixture(scope="module")
def network() -> mpq.CompiledNetwork:
    torch.manual_seed(0)
    batch = torch.randn(4, 3, 40, 40)
    return mpq.assign(Parts().eval(), batch[:1], [batch], "w8a8")


@pytest.fixture(scope="module")
def trace(network: mpq.CompiledNetwork) -> Trace:
    return network.trace(calls=40)


def test_every_site_and_node_is_named(network: mpq.CompiledNetwork, trace: Trace) -> None:
    names = [step.name for step in trace.steps]
    sites = list(network.plan.assignment)
    assert [name for name in names if name in sites] == sites
    others = {name for name in names if name not in sites}
    assert {"layer_norm_default", "softmax_int"} <= others
    nodes = {node.name for node in network.materialized.module.graph.nodes}
    assert others <= nodes


def test_all_calls_and_threads_are_counted(trace: Trace) -> None:
    assert (trace.calls, trace.threads) == (40, thread_count())
    assert all(step.time_us >= 0 and 0 <= step.busy <= 1 for step in trace.steps)
    assert trace.call_us > 0 and trace.total_us > 0
    whole = sum(step.time_us for step in trace.steps)
    assert sum(trace.of_names().values()) == pytest.approx(whole)


def test_a_traced_call_computes_the_same(network: mpq.CompiledNetwork) -> None:
    executor = Executor(network.folder, network.manifest)
    inputs = [as_tensor(value) for value in example_inputs(executor)]
    phases = sum(step.phases for step in network.manifest.steps)
    outputs, stamps = executor.traced(inputs, (phases, network.manifest.threads, 2))
    traced = np.from_dlpack(outputs[0]).copy()
    assert np.array_equal(traced, np.from_dlpack(executor.run_flat(inputs)[0]))
    assert (stamps[..., 1] >= stamps[..., 0]).all() and (stamps > 0).all()
    # No task begins a phase before all have finished the one before it.
    assert (stamps[1:, :, 0].min(-1) >= stamps[:-1, :, 1].max(-1)).all()


def test_spans_and_shares() -> None:
    """Two kernels, the second of two phases, on two threads that wait for each other."""
    steps = [Step(name="a", kernel="ka", phases=1), Step(name="b", kernel="kb", phases=2)]
    one = [[[1000, 3000], [1000, 5000]], [[5100, 6000], [5100, 7000]], [[7000, 9000], [7000, 9000]]]
    found = summary(steps, np.array([one, one], np.int64) + 10**18, call_us=7.5, threads=2)
    assert [step.name for step in found.steps] == ["a", "b"]
    assert [step.time_us for step in found.steps] == [4.0, 4.0]
    assert [step.busy for step in found.steps] == pytest.approx([3 / 4, 3.4 / 4], abs=0.02)
    assert (found.total_us, found.call_us, found.calls, found.threads) == (8.0, 7.5, 2, 2)
    assert Trace.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert [line.split()[:3] for line in str(found).splitlines()[1:3]] == [
        ["a", "4.00", "50.0%"],
        ["b", "4.00", "50.0%"],
    ]


def test_a_thread_that_has_two_tasks_is_busy_throughout() -> None:
    steps = [Step(name="a", kernel="ka", phases=1)]
    stamps = np.array([[[[0, 4000], [4000, 10000]]]], np.int64)
    found = summary(steps, stamps, call_us=10.0, threads=1)
    assert (found.steps[0].time_us, found.steps[0].busy, found.threads) == (10.0, 1.0, 1)


def test_medians_are_over_calls() -> None:
    steps = [Step(name="a", kernel="ka", phases=1)]
    spans = [10, 30, 500]
    stamps = np.array([[[[0, ns * 1000]]] for ns in spans], np.int64)
    found = summary(steps, stamps, call_us=1.0, threads=1)
    assert found.steps[0].time_us == statistics.median(spans)


def test_it_is_kept_beside_the_artifact(
    network: mpq.CompiledNetwork, trace: Trace, tmp_path: Path
) -> None:
    folder = network.save(tmp_path / "net")
    assert read_trace(folder) == trace
    (folder / TRACE).unlink()
    assert read_trace(folder) is None
    mpq.load(folder)
    damaged = json.dumps({**trace.to_json(), "total_us": "x"})
    for text in ('{"steps": 3}', damaged, "{}"):
        (folder / TRACE).write_text(text, encoding="utf-8")
        with pytest.raises(mpq.ArtifactError, match="damaged") as caught:
            read_trace(folder)
        assert "mpq trace" in caught.value.remedy


def test_a_trace_that_cannot_be_kept_is_returned(
    network: mpq.CompiledNetwork, tmp_path: Path
) -> None:
    folder = network.save(tmp_path / "net")
    (folder / TRACE).unlink(missing_ok=True)
    (folder / TRACE).mkdir()
    before = sorted(folder.iterdir())
    assert mpq.load(folder).trace(calls=2).calls == 2
    assert sorted(folder.iterdir()) == before


def test_calls_are_counted_from_one(network: mpq.CompiledNetwork) -> None:
    with pytest.raises(mpq.MpqError, match="no call to trace"):
        network.trace(calls=0)


def test_an_artifact_without_steps_says_so(network: mpq.CompiledNetwork, tmp_path: Path) -> None:
    folder = network.save(tmp_path / "old")
    manifest, _ = open_artifact(folder)
    (folder / artifact_files.MANIFEST).unlink()
    seal(folder, replace(manifest, steps=()))
    with pytest.raises(mpq.ArtifactError, match="does not say") as caught:
        trace_folder(folder)
    assert caught.value.found == "an older artifact"


class Twice(nn.Module):
    """Returns one output twice, which only the virtual machine does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return y, y


def test_the_virtual_machine_is_not_traced() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    network = mpq.assign(Twice().eval(), x[:1], [x], "w8a8")
    assert network.manifest.arena is None and not network.manifest.steps
    with pytest.raises(mpq.ArtifactError, match="which kernels it calls") as caught:
        network.trace()
    assert "virtual machine" in caught.value.found


def test_what_is_not_at_hand_is_not_traced(network: mpq.CompiledNetwork) -> None:
    absent = AbsentDevice("there", tier_named("generic"), 1)
    with pytest.raises(mpq.DeviceError, match="cannot trace"):
        absent.trace_network(network.folder, 5)


def test_networks_that_differ_in_names_alone_keep_theirs() -> None:
    """They could share a library, which would be built once."""
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    for name in ("mine", "yours"):
        model = nn.Sequential()
        model.add_module(name, nn.Linear(8, 4))
        network = mpq.assign(model.eval(), x[:1], [x], "w8a8")
        assert f"{name}:linear#0" in {step.name for step in network.manifest.steps}


@pytest.mark.parametrize("threads", ["1", "2"])
def test_any_number_of_threads(threads: str) -> None:
    script = (
        "import sys, json, torch, mpq_compile as mpq\n"
        "torch.manual_seed(0)\n"
        "x = torch.randn(4, 8)\n"
        "net = mpq.assign(torch.nn.Linear(8, 4).eval(), x[:1], [x], 'w8a8')\n"
        "found = net.trace(calls=5)\n"
        "print(json.dumps([found.threads, found.calls]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MPQ_THREADS": threads},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [int(threads), 5]

"""One function for the whole network equals the virtual machine, with any number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mpq_compile as mpq
from mpq_compile.lower.interface import REFERENCE_CELLS, REFERENCE_TABLE
from mpq_compile.lower.program import NotAProgram, read_program
from mpq_compile.runtime.artifact import MANIFEST
from mpq_compile.runtime.executor import Executor
from mpq_compile.runtime.native import empty


class Residual(nn.Module):
    """Convolutions, a residual, pooling, softmax in float, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 20, 3, padding=1)
        self.second = nn.Conv2d(20, 20, 3, padding=1)
        self.head = nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        scores = self.head(x.mean((2, 3)))
        return scores, torch.softmax(scores, 1)


@pytest.fixture(scope="module")
def network() -> mpq.CompiledNetwork:
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 24, 24) for _ in range(2)]
    return mpq.assign(Residual().eval(), batches[0][:1], batches, "w8a8")


def test_the_network_is_one_function(network: mpq.CompiledNetwork) -> None:
    assert network.manifest.arena is not None and network.manifest.arena > 0


@pytest.mark.parametrize("candidate", ["bf16", "fp32", "w4a8"])
def test_so_it_is_in_every_format(candidate: str) -> None:
    """Of one window to pool, all loops have one round and vanish."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module, x = nn.Sequential(*layers, nn.Linear(64, 5)).eval(), torch.randn(4, 3, 8, 8)
    network = mpq.assign(module, x[:1], [x], candidate)
    assert network.manifest.arena is not None
    torch.testing.assert_close(network(x[:1]), network.reference(x[:1]), rtol=0.02, atol=0.02)


def test_results_equal_the_oracle(network: mpq.CompiledNetwork) -> None:
    for seed in range(5):
        x = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
        scores, chances = network(x)
        expected, expected_chances = network.reference(x)
        assert torch.equal(scores, expected)
        torch.testing.assert_close(chances, expected_chances)


RUN = """
import sys
import numpy as np
import mpq_compile as mpq
x = np.load(sys.argv[2])
np.save(sys.argv[3], mpq.load(sys.argv[1])(x)[0])
"""


def test_fewer_threads_than_tasks_do_not_wait_for_ever(
    network: mpq.CompiledNetwork, tmp_path: Path
) -> None:
    x = torch.randn(1, 3, 24, 24)
    network.save(tmp_path / "net")
    np.save(tmp_path / "x.npy", x.numpy())
    arguments = [str(tmp_path / name) for name in ("net", "x.npy", "y.npy")]
    environment = {**os.environ, "TVM_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, *arguments]
    subprocess.run(command, check=True, timeout=120, env=environment)
    assert np.array_equal(np.load(tmp_path / "y.npy"), network.reference(x)[0].numpy())


def test_calls_from_several_threads_are_right(network: mpq.CompiledNetwork) -> None:
    inputs = [torch.randn(1, 3, 24, 24) for _ in range(8)]
    expected = [network.reference(x)[0] for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not torch.equal(network(inputs[index])[0], expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_manifest_says_how_much_memory_is_needed(
    network: mpq.CompiledNetwork, tmp_path: Path
) -> None:
    network.save(tmp_path / "net")
    manifest = json.loads((tmp_path / "net" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["arena"] == network.manifest.arena


def test_other_modules_are_left_to_the_virtual_machine() -> None:
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", attrs={"num_input": 1}):
        with builder.dataflow():
            result = builder.emit_output(x)
        builder.emit_func_output(result, params=[x])
    module = relax.transform.BundleModelParams()(builder.finalize())
    with pytest.raises(NotAProgram, match="an output is an input"):
        read_program(module)


class Twice(nn.Module):
    """Returns one output twice, which only the virtual machine does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return y, y


@pytest.mark.parametrize("module", [nn.Sequential(nn.Linear(8, 4)), Twice()])
def test_every_library_has_the_reference_workload(module: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    network = mpq.assign(module.eval(), x[:1], [x], "w8a8")
    assert (network.manifest.arena is None) == isinstance(module, Twice)
    said = any("virtual machine" in note and "twice" in note for note in network.manifest.notes)
    assert said == isinstance(module, Twice)
    cells = np.from_dlpack(empty(network.manifest.threads * REFERENCE_CELLS, "float32"))
    cells[:] = 9.0
    table = np.from_dlpack(empty(network.manifest.threads * REFERENCE_TABLE, "int32"))
    table[:] = np.arange(len(table)) * 5 % REFERENCE_TABLE
    before = table.copy()
    Executor(network.folder, network.manifest).reference(cells, table)()
    # Every cell of every thread has gone from 9 to where x = x / 2 + 1 / 2 ends.
    np.testing.assert_allclose(cells, 1.0)
    # And every thread has gone through its table, and left where it came to.
    way = np.arange(np.flatnonzero(table != before).max() % REFERENCE_TABLE + 1)
    at = before[way]
    for _ in range(16_000):
        at = before[(at + way) % REFERENCE_TABLE]
    for own in table.reshape(-1, REFERENCE_TABLE):
        np.testing.assert_array_equal(own[way], at)

"""A remote device: a tracker and a server of this machine, in processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from farm import Farm, farm

import mpq_compile as mpq
from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.runtime.device import LocalDevice
from mpq_compile.runtime.fingerprint import device_fingerprint
from mpq_compile.runtime.kernel_timing import Task
from mpq_compile.runtime.remote import RpcDevice, rpc_device
from mpq_compile.runtime.rpc_address import Address

LINEAR = LinearWorkload(rows=4, in_features=32, out_features=32, compute="fp32", out="fp32")
KEY = "here"
# A device has neither torch nor what the command line and profiles need.
BARE = (
    "import sys\n"
    "for name in ('torch', 'typer', 'rich', 'yaml', 'jsonschema', 'scipy', 'tornado'):\n"
    "    sys.modules[name] = None\n"
    "from mpq_compile.runtime.serve import main\n"
    "sys.exit(main())"
)


@pytest.fixture(scope="module")
def servers() -> Iterator[Farm]:
    with farm() as made:
        made.wait_for(KEY, made.start(KEY, "-c", BARE))
        yield made


@pytest.fixture(scope="module")
def device(servers: Farm) -> RpcDevice:
    return rpc_device(Address.parse(servers.target(KEY)))


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 5),
    )


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(device: RpcDevice, images: torch.Tensor) -> mpq.CompiledNetwork:
    return mpq.assign(model(), images[:2], [images], "w8a8", target=device.name)


def test_it_is_filed_under_its_own_fingerprint(device: RpcDevice) -> None:
    local = LocalDevice()
    assert device.fingerprint == device_fingerprint(tier=local.tier.name, threads=local.threads)
    assert (device.tier, device.threads) == (local.tier, local.threads)
    assert device.conditions().load is not None


def test_kernels_are_timed_there(device: RpcDevice) -> None:
    runs = device.kernels([Task(operator="linear", workload=LINEAR)] * 2)
    with device.lock():
        assert all(run.time() > 0 for run in runs)


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_a_network_runs_there_bit_for_bit(
    network: mpq.CompiledNetwork, images: torch.Tensor, samples: int
) -> None:
    found = network(images[:samples])
    assert torch.equal(found, network.reference(images[:samples]))
    assert np.array_equal(network(images[:samples].numpy()), found.numpy())


def test_its_own_device_is_where_a_saved_network_runs(
    network: mpq.CompiledNetwork, images: torch.Tensor, tmp_path: Path
) -> None:
    folder = network.save(tmp_path / "net")
    remote, local = mpq.load(folder), mpq.load(folder, LocalDevice())
    assert (remote.device.name, local.device.name) == (network.plan.target, "local")
    assert np.array_equal(remote(images.numpy()), local(images.numpy()))


def test_networks_are_timed_there_in_turns(device: RpcDevice, network: mpq.CompiledNetwork) -> None:
    with device.lock():
        timings = device.time_networks([network.folder] * 2, blocks=2)
    assert [len(blocks) for blocks in timings.latencies_ms] == [2, 2]
    assert all(ms > 0 for blocks in timings.latencies_ms for block in blocks for ms in block)


def test_wrong_inputs_are_refused_here(network: mpq.CompiledNetwork) -> None:
    with pytest.raises(mpq.MpqError, match="wrong input"):
        network(torch.zeros(2, 3, 6, 6, dtype=torch.float64))


def test_errors_of_the_device_are_raised_here(device: RpcDevice, tmp_path: Path) -> None:
    connection = device._connected()
    with pytest.raises(mpq.ArtifactError, match=f"{device.name}: nowhere: not an artifact"):
        connection.call("load", folder="nowhere")
    with pytest.raises(mpq.DeviceError, match="the device failed"):
        connection.call("expect", folder="a/b", files=[])


def test_the_lock_of_the_device_is_that_of_its_machine(device: RpcDevice) -> None:
    order: list[str] = []
    with device.lock():
        waiting = threading.Thread(target=_locked, args=(order,))
        waiting.start()
        waiting.join(0.3)
        order.append("remote")
    waiting.join(30)
    assert order == ["remote", "local"]


def _locked(order: list[str]) -> None:
    with LocalDevice().lock():
        order.append("local")

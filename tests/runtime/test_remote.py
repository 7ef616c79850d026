"""A remote device: a tracker and a server of this machine, in processes of their own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from farm import Farm, farm, until

import mpq_compile as mpq
from mpq_compile.cost.profile import load_profile
from mpq_compile.cost.targets import resolve_target
from mpq_compile.kernels.tier import TIERS
from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.runtime import connection, remote
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


def test_an_address_may_be_a_mapping(servers: Farm, device: RpcDevice) -> None:
    found = resolve_target({"rpc": {"tracker": f"127.0.0.1:{servers.port}", "key": KEY}})
    assert (found.name, found.device) == (servers.target(KEY), device)
    assert device.tier.name in found.profile.tiers


def test_a_profile_may_name_a_key(
    servers: Farm, device: RpcDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(load_profile("local").source).read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("reached: local", f"reached: rpc\nrpc_key: {KEY}"))
    monkeypatch.delenv("MPQ_TRACKER", raising=False)
    with pytest.raises(mpq.DeviceError, match="MPQ_TRACKER does not say"):
        resolve_target(path)
    monkeypatch.setenv("MPQ_TRACKER", f"127.0.0.1:{servers.port}")
    assert resolve_target(path).device is device
    other = next(tier for tier in TIERS if tier not in load_profile("local").tiers)
    path.write_text(re.sub(r"tiers: .*", f"tiers: [{other}]", path.read_text()))
    with pytest.raises(mpq.MpqError, match="not of this profile's kind"):
        resolve_target(path)


def test_others_wait_for_a_device_until_it_is_given_back(
    servers: Farm, device: RpcDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.conditions()
    monkeypatch.setattr(remote, "WAIT_S", 0.5)
    with pytest.raises(mpq.DeviceError, match="no answer in time") as caught:
        RpcDevice(device.address)
    assert caught.value.expected == f"a free device with the key {KEY!r} within 0.5 s"
    device.close()
    until(lambda: servers.free(KEY) == 1)
    other = RpcDevice(device.address)
    assert other.fingerprint == device.fingerprint
    other.close()


def test_a_session_that_nobody_uses_is_given_back(
    servers: Farm, device: RpcDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "IDLE_S", 0.2)
    device.close()
    runs = device.kernels([Task(operator="linear", workload=LINEAR)])
    time.sleep(0.6)
    assert runs[0].time() > 0  # a loaded kernel keeps the session
    runs.clear()
    until(lambda: servers.free(KEY) == 1)
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


def test_the_kernels_of_a_network_are_traced_there(
    device: RpcDevice, network: mpq.CompiledNetwork
) -> None:
    found = network.trace(calls=5)
    assert (found.calls, found.threads) == (5, device.threads)
    assert {step.name for step in found.steps} >= set(network.plan.assignment)


def test_wrong_inputs_are_refused_here(network: mpq.CompiledNetwork) -> None:
    with pytest.raises(mpq.MpqError, match="wrong input"):
        network(torch.zeros(2, 3, 6, 6, dtype=torch.float64))


def test_errors_of_the_device_are_raised_here(device: RpcDevice, tmp_path: Path) -> None:
    session = device._connected()
    with pytest.raises(mpq.ArtifactError, match=f"{device.name}: nowhere: not an artifact"):
        session.call("load", folder="nowhere")
    with pytest.raises(mpq.DeviceError, match="the device failed"):
        session.call("expect", folder="a/b", files=[])


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

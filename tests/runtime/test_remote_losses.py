"""Remote devices that are lost: killed, hung, crashed, ended; and a tracker that is restarted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from farm import Farm, farm, until

import mpq_compile as mpq
from mpq_compile.cost.measure import measure
from mpq_compile.cost.store import Store
from mpq_compile.errors import DeviceLostError
from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.runtime import remote
from mpq_compile.runtime.kernel_timing import Task
from mpq_compile.runtime.remote import RpcDevice
from mpq_compile.runtime.remote_kernel import RemoteRun
from mpq_compile.runtime.rpc_address import Address

T = TypeVar("T")
DEADLINE_S = 60.0
# More patient than what waits for a device that never comes back.
PATIENT = (1.0,) * 20


def linear(features: int) -> Task:
    workload = LinearWorkload(
        rows=4, in_features=32, out_features=features, compute="fp32", out="fp32"
    )
    return Task(operator="linear", workload=workload)


def in_time(action: Callable[[], T]) -> T:
    """Do something that must not hang."""
    start = time.monotonic()
    result = action()
    assert time.monotonic() - start < DEADLINE_S
    return result


def open_device(servers: Farm, key: str) -> RpcDevice:
    return RpcDevice(Address.parse(servers.target(key)))


@pytest.fixture(scope="module")
def servers() -> Iterator[Farm]:
    with farm() as made:
        starting = [(key, made.start(key)) for key in ("lost", "crash", "ended", "farm", "farm")]
        for key, process in starting:
            made.wait_for(key, process)
        made.wait_for("farm", process, 2)
        yield made


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSES_S", (0.1, 0.2))
    monkeypatch.setattr(remote, "_FREE_WAIT_S", 0.5)


def test_a_lost_device_is_a_clear_error_and_the_work_goes_on_when_it_is_back(
    servers: Farm, tmp_path: Path
) -> None:
    device = open_device(servers, "lost")
    with Store(tmp_path / "db.sqlite") as store:
        first = measure([linear(32)], store, device)
        run = device.kernels([linear(64)])[0]
        servers.servers[device.server].kill()
        with pytest.raises(DeviceLostError, match="the device was lost while timing a kernel"):
            in_time(run.time)
        with pytest.raises(DeviceLostError, match="no device is left to measure on") as caught:
            in_time(lambda: measure([linear(32), linear(64)], store, device))
        assert servers.target("lost") in str(caught.value)
        assert "mpq device serve" in str(caught.value)
        servers.serve("lost")
        both = measure([linear(32), linear(64)], store, device)
    assert both.items() > first.items()
    device.close()


def test_the_work_of_a_lost_worker_is_done_by_the_others(
    servers: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    timed, killed = RemoteRun.time, []

    def killing(run: RemoteRun) -> float:
        if not killed:
            killed.append(run._connection.server)
            servers.servers[killed[0]].kill()
        return timed(run)

    monkeypatch.setattr(RemoteRun, "time", killing)
    monkeypatch.setattr("mpq_compile.cost.measure.CHUNK", 2)
    tasks = [linear(16 * size) for size in range(1, 7)]
    device = open_device(servers, "farm")
    with Store(tmp_path / "db.sqlite") as store:
        found = in_time(lambda: measure(tasks, store, device))
        assert {key.device for key, _ in store.items()} == {device.fingerprint}
    assert found.keys() == {task.workload.key for task in tasks}
    assert killed[0] in caplog.text
    device.close()


def test_a_network_goes_on_running_on_another_device(servers: Farm) -> None:
    x = torch.rand(8, 8)
    servers.serve("lost", count=2)
    network = mpq.assign(
        torch.nn.Sequential(torch.nn.Linear(8, 4)),
        x[:1],
        [x],
        "w8a8",
        target=servers.target("lost"),
    )
    device = network.device
    assert isinstance(device, RpcDevice)
    before = device.server
    servers.servers[before].kill()
    assert torch.equal(in_time(lambda: network(x)), network.reference(x))
    assert device.server != before
    device.close()


def test_a_device_that_hangs_is_given_up(servers: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device(servers, "lost")
    process = servers.servers[device.server]
    run = device.kernels([linear(96)])[0]
    monkeypatch.setenv("MPQ_RPC_TIMEOUT", "1")
    process.signal(signal.SIGSTOP)
    with pytest.raises(DeviceLostError, match="lost while timing a kernel") as caught:
        in_time(run.time)
    assert caught.value.found == "no answer within 1 s"
    with pytest.raises(DeviceLostError, match="lost while timing a kernel"):
        in_time(device.conditions)
    process.kill()


def test_a_session_that_crashes_does_not_end_its_server(
    servers: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PAUSES_S", PATIENT)
    device = open_device(servers, "crash")
    process = servers.servers[device.server]
    for pid in set(process.members()) - {process.process.pid}:
        os.kill(pid, signal.SIGKILL)
    assert in_time(device.conditions).load is not None
    assert process.process.poll() is None
    device.close()


def test_a_tracker_that_was_restarted_finds_its_servers_again(
    servers: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PAUSES_S", PATIENT)
    device = open_device(servers, "crash")
    servers.restart_tracker()
    assert device.conditions().load is not None  # the session needs no tracker
    device.close()
    assert in_time(device.conditions).load is not None
    device.close()
    for key in ("ended", "farm"):
        servers.wait_for(key, servers.tracker)


@pytest.mark.parametrize(
    "key, number, code",
    [("ended", signal.SIGTERM, 0), ("crash", signal.SIGINT, 0), ("farm", signal.SIGKILL, -9)],
)
def test_a_server_that_is_ended_leaves_no_process(
    servers: Farm, key: str, number: int, code: int
) -> None:
    device = open_device(servers, key)
    process = servers.servers[device.server]
    assert len(process.members()) >= 3  # the server, a session, and what forks fresh processes
    process.process.send_signal(number)
    assert process.process.wait(20) == code
    until(lambda: not process.members(), 20)
    folders = list(Path(process.folder.name).glob("mpq-serve-*"))
    assert not folders or number == signal.SIGKILL
    with pytest.raises(DeviceLostError):
        in_time(device.conditions)

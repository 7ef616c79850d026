"""Remote devices that are wrong: other results, another version, another kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from broken_server import WORKLOAD
from farm import Farm, farm

import mpq_compile as mpq
from mpq_compile.cost.measure import measure
from mpq_compile.cost.store import Store
from mpq_compile.runtime.kernel_timing import Task
from mpq_compile.runtime.remote import RpcDevice
from mpq_compile.runtime.rpc_address import Address

BROKEN = str(Path(__file__).with_name("broken_server.py"))


def open_device(servers: Farm, key: str) -> RpcDevice:
    return RpcDevice(Address.parse(servers.target(key)))


@pytest.fixture(scope="module")
def servers() -> Iterator[Farm]:
    """A farm in which every fault has its key; all are started side by side."""
    with farm() as made:
        starting = {key: made.start(key, BROKEN, key) for key in ("networks", "kernels", "version")}
        starting["mixed"] = made.start("mixed")
        generic = made.start("mixed", MPQ_TIER="generic")
        for key, process in starting.items():
            made.wait_for(key, process)
        made.wait_for("mixed", generic, 2)
        yield made


def test_a_network_that_computes_something_else_is_refused(servers: Farm) -> None:
    x = torch.rand(8, 8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    with pytest.raises(mpq.MpqError, match="does not compute what its oracle computes"):
        mpq.assign(model, x[:1], [x], "w8a8", target=servers.target("networks"))


def test_a_kernel_that_computes_something_else_is_not_timed(servers: Farm, tmp_path: Path) -> None:
    task = Task(operator="linear", workload=WORKLOAD)
    device = open_device(servers, "kernels")
    with Store(tmp_path / "db.sqlite") as store:
        with pytest.raises(mpq.DeviceError, match="computes something else") as caught:
            measure([task], store, device)
        assert len(store) == 0
    assert device.name in str(caught.value)
    device.close()


def test_another_version_is_refused(servers: Farm) -> None:
    with pytest.raises(mpq.DeviceError, match="server does not fit") as caught:
        open_device(servers, "version")
    assert "0.1.0" in str(caught.value.found)


def test_a_device_of_another_kind_is_no_worker(
    servers: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    device = open_device(servers, "mixed")
    workers = device.workers()
    assert [worker.fingerprint for worker in workers] == [device.fingerprint]
    assert "another kind of device has this key" in caplog.text
    device.close()

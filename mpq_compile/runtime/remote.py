"""A device behind TVM's RPC: the host compiles, the device runs and times."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mpq_compile.errors import DeviceError, DeviceLostError
from mpq_compile.kernels.tier import Tier, tier_named
from mpq_compile.runtime import tracker
from mpq_compile.runtime.connection import WAIT_S, Connection
from mpq_compile.runtime.device import Conditions, Device, LocalDevice
from mpq_compile.runtime.kernel_timing import (
    Run,
    Task,
    blank_outputs,
    compiled_kernel,
    kernel_arguments,
)
from mpq_compile.runtime.remote_kernel import RemoteRun
from mpq_compile.runtime.remote_network import RemoteNetwork, uploaded
from mpq_compile.runtime.rpc_address import Address, is_address
from mpq_compile.runtime.service import PROTOCOL, versions
from mpq_compile.runtime.timing import Timings

log = logging.getLogger(__name__)
T = TypeVar("T")

# Pauses before a lost device is asked for again: a server needs seconds to start, and a tracker
# that was restarted knows its servers again after about eight.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# A server that the tracker calls free answers at once, unless another client was quicker.
_FREE_WAIT_S = 3.0


class RpcDevice:
    """A device behind RPC; its own description says what it is.

    Args:
        address: Tracker and key.
        connection: A session that is open already.

    Raises:
        DeviceError: There is no such device, or its server does not fit this package.
    """

    def __init__(self, address: Address, connection: Connection | None = None) -> None:
        self.address = address
        self._guard = threading.RLock()
        self._locked = False
        self._others: list[RpcDevice] = []
        self._connection = connection
        self._description: Mapping[str, Any] | None = None
        if connection is None:
            tracker.require_key(address.host, address.port, address.key)
        self._description = self._steadily(described)

    @property
    def description(self) -> Mapping[str, Any]:
        """What the device says of itself; see ``Service.describe``."""
        assert self._description is not None
        return self._description

    @property
    def name(self) -> str:
        """``rpc://host:port/key``."""
        return self.address.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint that the device gives itself."""
        return str(self.description["fingerprint"])

    @property
    def tier(self) -> Tier:
        """The tier of the device."""
        return tier_named(self.description["tier"])

    @property
    def threads(self) -> int:
        """The threads of the device."""
        return int(self.description["threads"])

    def workers(self) -> Sequence[Device]:
        """Return this device and those of the same key and fingerprint that are free now."""
        with self._guard:
            self._others = [other for other in self._others if other.connected]
            known = tracker.require_key(self.address.host, self.address.port, self.address.key)
            found = [w for w in (self._worker() for _ in range(known.free)) if w is not None]
            for worker in found:
                if worker.fingerprint == self.fingerprint:
                    self._others.append(worker)
                    continue
                log.warning(
                    "%s is left out: its fingerprint is %s, not %s; give it another key",
                    worker.server,
                    worker.fingerprint,
                    self.fingerprint,
                )
                worker.close()
            return [self, *self._others]

    def _worker(self) -> RpcDevice | None:
        try:
            return RpcDevice(self.address, Connection(self.address, _FREE_WAIT_S))
        except DeviceError as error:
            log.warning("a device of %s is left out: %s", self.name, error)
            return None

    @property
    def connected(self) -> bool:
        """Tell whether it holds a session that was not lost."""
        return self._connection is not None and not self._connection.lost

    @property
    def server(self) -> str:
        """``host:port`` of the server that it holds; empty without one."""
        return "" if self._connection is None else self._connection.server

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of all that is timed on the device, by whichever server or program."""
        self._steadily(_take_lock)
        self._locked = True
        try:
            yield
        finally:
            self._locked = False
            with suppress(DeviceLostError):  # the lock went with its session
                if self._connection is not None and self.connected:
                    self._connection.call("unlock")

    def conditions(self) -> Conditions:
        """Return clock and load of the device."""
        return Conditions(**self._steadily(lambda connection: connection.call("conditions")))

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        """Compile the kernels here, upload them, and load them there."""
        with tempfile.TemporaryDirectory(prefix="mpq-kernels-") as folder:
            libraries = [Path(folder) / f"kernel{number}.so" for number in range(len(tasks))]
            for task, library in zip(tasks, libraries, strict=True):
                compiled_kernel(task, self.tier, self.threads).export_library(str(library))
            arguments = [kernel_arguments(task.workload, self.tier) for task in tasks]
            counts = [len(blank_outputs(task.workload)) for task in tasks]
            return self._steadily(
                lambda connection: [
                    RemoteRun(connection, library, arrays, count)
                    for library, arrays, count in zip(libraries, arguments, counts, strict=True)
                ]
            )

    def open(self, folder: Path) -> RemoteNetwork:
        """Upload an artifact and load it there."""
        return RemoteNetwork(folder, self._steadily)

    def time_networks(self, folders: Sequence[Path], blocks: int) -> Timings:
        """Upload artifacts and time them there, in turns, in one fresh process."""

        def timed(connection: Connection) -> Timings:
            places = [uploaded(connection, folder) for folder in folders]
            found = connection.call("time_networks", folders=places, blocks=blocks)
            return Timings.from_json(found)

        return self._steadily(timed)

    def close(self) -> None:
        """Give the device back to the tracker."""
        with self._guard:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _steadily(self, action: Callable[[Connection], T]) -> T:
        """Do what can be done again; where the device is lost, try again for a while."""
        for pause in _PAUSES_S:
            try:
                return action(self._connected())
            except DeviceLostError as error:
                log.warning("%s; trying again", error.message)
                time.sleep(pause)
        return action(self._connected())

    def _connected(self) -> Connection:
        with self._guard:
            if self._connection is None or self._connection.lost:
                self._connection = self._reconnected()
            return self._connection

    def _reconnected(self) -> Connection:
        """Open another session, with a device like the one before."""
        connection = _opened(self.address)
        if self._description is not None:
            found = described(connection)["fingerprint"]
            if found != self.fingerprint:
                connection.close()
                raise _another(connection, self.fingerprint, found)
        if self._locked:
            _take_lock(connection)
        return connection


def _opened(address: Address) -> Connection:
    """Open a session; that there is none for the moment is a loss, which may be repaired."""
    try:
        tracker.require_key(address.host, address.port, address.key)
        return Connection(address)
    except DeviceLostError:
        raise
    except DeviceError as error:
        parts = {name: getattr(error, name) for name in ("where", "expected", "found", "remedy")}
        raise DeviceLostError(error.message, **parts) from error


def _take_lock(connection: Connection) -> None:
    connection.call("lock", timeout=2 * WAIT_S)


def described(connection: Connection) -> dict[str, Any]:
    """Return what a device says of itself.

    Raises:
        DeviceError: Its server is of another version.
    """
    found: dict[str, Any] = connection.call("describe")
    here, there = versions(), found["versions"]
    # Python may differ: nothing that it compiles is sent.
    differing = [name for name in ("tvm", "tvm_ffi") if here[name] != there.get(name)]
    if found["protocol"] == PROTOCOL and not differing:
        return found
    connection.close()
    expected = {name: here[name] for name in differing} or f"protocol {PROTOCOL}"
    given = {name: there.get(name) for name in differing} or f"protocol {found['protocol']}"
    raise DeviceError(
        "the device's server does not fit: what is built here is for the version here",
        where=f"{connection.address.name}, server {connection.server}",
        expected=expected,
        found=given,
        remedy="install the same versions on both sides, and start the server again",
    )


def _another(connection: Connection, expected: str, found: str) -> DeviceLostError:
    return DeviceLostError(
        "another kind of device has this key",
        where=f"{connection.address.name}, server {connection.server}",
        expected=expected,
        found=found,
        remedy="give devices that differ keys that differ",
    )


@cache
def rpc_device(address: Address) -> RpcDevice:
    """Return this process's device of an address: one session serves all networks on it."""
    return RpcDevice(address)


def device_at(target: str | Mapping[str, Any]) -> Device:
    """Return the device of an address, or this machine for anything else."""
    return rpc_device(Address.parse(target)) if is_address(target) else LocalDevice()

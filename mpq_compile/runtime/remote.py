"""A device behind TVM's RPC: the host compiles, the device runs and times."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from mpq_compile.errors import DeviceError, DeviceLostError
from mpq_compile.kernels.tier import Tier, tier_named
from mpq_compile.runtime import tracker
from mpq_compile.runtime.connection import WAIT_S, Connection
from mpq_compile.runtime.device import Conditions, Device
from mpq_compile.runtime.kernel_timing import (
    Run,
    Task,
    blank_outputs,
    kernel_arguments,
    write_kernel,
)
from mpq_compile.runtime.remote_kernel import RemoteRun
from mpq_compile.runtime.remote_network import RemoteNetwork, uploaded
from mpq_compile.runtime.rpc_address import Address
from mpq_compile.runtime.service import PROTOCOL, versions
from mpq_compile.runtime.timing import Timings
from mpq_compile.runtime.trace import Trace

log = logging.getLogger(__name__)
T = TypeVar("T")

# Pauses before a lost device is asked for again: a server needs seconds to start, and a tracker
# that was restarted knows its servers again after about eight.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
# How long to wait for a server that should be free: another client may have been quicker.
_FREE_WAIT_S = 3.0


class RpcDevice:
    """A device behind RPC; its own description says what it is.

    Where it is lost, what can be done again is done again, for a while, with whichever device of
    its kind the tracker has. A worker of a farm is not waited for: the others do its work.

    Args:
        address: Tracker and key.
        worker: The session of one server of a farm.

    Raises:
        DeviceError: There is no such device, or its server does not fit this package.
    """

    present = True

    def __init__(self, address: Address, worker: Connection | None = None) -> None:
        self.address = address
        self._pauses_s = _PAUSES_S if worker is None else ()
        self._guard = threading.RLock()
        self._locked = False
        self._others: list[RpcDevice] = []
        self._connection = worker
        self._description: Mapping[str, Any] | None = None
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
        """The tier of the device, on its architecture."""
        return tier_named(self.description["tier"]).on(self.description["machine"])

    @property
    def threads(self) -> int:
        """The threads of the device."""
        return int(self.description["threads"])

    def workers(self) -> Sequence[Device]:
        """Return this device and those of the same key and fingerprint that are free now."""
        return self._steadily(self._workers)

    def _workers(self, own: Connection) -> Sequence[Device]:
        with self._guard:
            self._others = [other for other in self._others if other.connected]
            for device in free_devices(self.address, self._servers().free):
                if device.fingerprint == self.fingerprint:
                    self._others.append(device)
                    continue
                log.warning("%s", _another(device.server, self.fingerprint, device.fingerprint))
                device.close()
            return [RpcDevice(self.address, own), *self._others] if self._others else [self]

    @property
    def connected(self) -> bool:
        """Tell whether it holds a session."""
        return self._connection is not None and self._connection.usable

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
            self._unlock()

    def _unlock(self) -> None:
        connection = self._connection
        if connection is None or not connection.usable:
            return  # the lock went with its session
        connection.held = False
        with suppress(DeviceLostError):
            connection.call("unlock")

    def conditions(self) -> Conditions:
        """Return clock and load of the device."""
        return Conditions(**self._steadily(lambda connection: connection.call("conditions")))

    def kernels(self, tasks: Sequence[Task]) -> list[Run]:
        """Compile the kernels here, upload them, and load them there."""
        with tempfile.TemporaryDirectory(prefix="mpq-kernels-") as folder:
            libraries = [Path(folder) / f"kernel{number}.so" for number in range(len(tasks))]
            for task, library in zip(tasks, libraries, strict=True):
                write_kernel(task, self.tier, self.threads, library)
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

    def trace_network(self, folder: Path, calls: int) -> Trace:
        """Upload an artifact and time its kernels there, in a fresh process."""

        def traced(connection: Connection) -> Trace:
            place = uploaded(connection, folder)
            return Trace.from_json(connection.call("trace_network", folder=place, calls=calls))

        return self._steadily(traced)

    def close(self) -> None:
        """Give the device back to the tracker."""
        with self._guard:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _steadily(self, action: Callable[[Connection], T]) -> T:
        """Do what can be done again; where the device is lost, try again for a while."""
        first = None if self._connection is None else self._connection.loss
        for pause_s in (*self._pauses_s, None):
            try:
                return action(self._connected())
            except DeviceLostError as error:
                first = first or error
                if pause_s is None:
                    break
                log.warning("%s: %s; trying again", self.name, error.message)
                time.sleep(pause_s)
        assert first is not None
        raise first

    def _connected(self) -> Connection:
        with self._guard:
            before = self._connection
            if before is not None and before.usable:
                return before
            if before is None or before.loss is None:
                self._connection = self._opened(WAIT_S)
            elif self._pauses_s:
                self._connection = self._reopened()
            else:
                raise before.loss
            return self._connection

    def _reopened(self) -> Connection:
        """Open another session after a loss: that there is no device now may change."""
        try:
            return self._opened(_FREE_WAIT_S)
        except DeviceLostError:
            raise
        except DeviceError as error:
            raise _as_lost(error) from error

    def _servers(self) -> tracker.Servers:
        """Ask the tracker; one that was restarted knows a server again after some seconds."""
        try:
            return tracker.require_key(self.address.host, self.address.port, self.address.key)
        except DeviceError as error:
            if self._description is None:
                raise
            raise _as_lost(error) from error

    def _opened(self, wait_s: float) -> Connection:
        """Open a session with a device like the one before, if there was one."""
        others: list[Connection] = []
        try:
            for _ in self._servers().addresses:
                connection = Connection(self.address, wait_s)
                found = described(connection)
                self._description = self._description or found
                if found["fingerprint"] == self.fingerprint:
                    if self._locked:
                        _take_lock(connection)
                    return connection
                others.append(connection)
            raise _another(others[-1].server, self.fingerprint, found["fingerprint"])
        finally:
            for connection in others:
                connection.close()


def _as_lost(error: DeviceError) -> DeviceLostError:
    parts = {name: getattr(error, name) for name in ("where", "expected", "found", "remedy")}
    return DeviceLostError(error.message, **parts)


def _take_lock(connection: Connection) -> None:
    connection.held = True
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


def _another(server: str, expected: str, found: str) -> DeviceLostError:
    return DeviceLostError(
        "another kind of device has this key: it is left out",
        where=f"server {server}",
        expected=expected,
        found=found,
        remedy="give devices that differ keys that differ",
    )


def free_devices(address: Address, count: int) -> list[RpcDevice]:
    """Open a session with each of up to ``count`` free devices of an address."""
    devices = []
    for _ in range(count):
        try:
            devices.append(RpcDevice(address, Connection(address, _FREE_WAIT_S)))
        except DeviceError as error:
            log.warning("a device of %s is left out: %s", address.name, error)
    return devices


_DEVICES: dict[Address, RpcDevice] = {}
_DEVICES_GUARD = threading.Lock()


def rpc_device(address: Address) -> RpcDevice:
    """Return this process's device of an address: one session serves all networks on it.

    Where the session has ended, the device may have become another one; it is asked again.
    """
    with _DEVICES_GUARD:
        known = _DEVICES.get(address)
        if known is None or not known.connected:
            known = _DEVICES[address] = RpcDevice(address)
        return known

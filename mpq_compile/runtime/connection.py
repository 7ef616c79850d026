"""One session with a device's server: calls with a deadline, uploads, and errors that say where.

All that touches the session runs in one thread of the connection, which is given up together with
the session where the device does not answer. So nothing of the caller ever waits for it, not even
the garbage collector: remote objects belong to that thread.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from mpq_compile import errors
from mpq_compile.errors import DeviceError, DeviceLostError
from mpq_compile.runtime import tracker
from mpq_compile.runtime.processes import settle
from mpq_compile.runtime.rpc_address import Address
from mpq_compile.runtime.service import PREFIX

T = TypeVar("T")

TIMEOUT_S = 300.0
# How long to wait for a device that others use.
WAIT_S = 600.0
# A session that nobody uses is given back after this long, so that others can have the device.
IDLE_S = 10.0
# The server ends a session that hangs; none that works is ever so long.
_SESSION_S = 24 * 3600


def timeout_s() -> float:
    """Return how long a device may take for one answer: ``MPQ_RPC_TIMEOUT`` seconds.

    Raises:
        DeviceError: It is not a number of seconds.
    """
    given = os.environ.get("MPQ_RPC_TIMEOUT", "")
    try:
        seconds = float(given) if given else TIMEOUT_S
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise DeviceError(
            "MPQ_RPC_TIMEOUT is not a time",
            expected="seconds that a device may take for one answer",
            found=repr(given),
            remedy=f"unset it for {TIMEOUT_S:g} s",
        )
    return seconds


class Connection:
    """A session with one server of an address, from the tracker's hand.

    Attributes:
        usable: False once it was closed or lost.
        loss: What happened where the server did not answer as it should.
        held: True keeps it open while nobody uses it.
        objects: Remote objects by key, which keep it open too; only :meth:`do` may touch them.

    Raises:
        DeviceError: No device is free, or the tracker cannot be reached.
        DeviceLostError: The server that the tracker named cannot be reached.
    """

    def __init__(self, address: Address, wait_s: float = WAIT_S) -> None:
        self.address = address
        self.usable = True
        self.loss: DeviceLostError | None = None
        self.held = False
        self.objects: dict[int, Any] = {}
        self._numbers = itertools.count()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._session: Any = None
        self._guard = threading.Lock()
        host, port, key = tracker.request(address.host, address.port, address.key, wait_s)
        self.server = f"{host}:{port}"
        threading.Thread(target=self._work, daemon=True, name=f"mpq {self.server}").start()
        self.do(lambda _: self._open(host, port, key), "connecting")

    def _open(self, host: str, port: int, key: str) -> None:
        from tvm import rpc

        self._session = rpc.connect(host, port, key, session_timeout=_SESSION_S)

    def _work(self) -> None:
        while self._do_next():
            pass
        self.objects.clear()
        if self._session is not None:
            with suppress(RuntimeError):  # the server may have ended it
                self._session.get_function("CloseRPCConnection")()
        self._session = None

    def _do_next(self) -> bool:
        """Do one job, and drop it: it may be what keeps a remote object alive."""
        job = self._next()
        if job is not None:
            job()
        return job is not None

    def _next(self) -> Callable[[], None] | None:
        """Return the next job; None to end, after a while without any."""
        while True:
            try:
                return self._jobs.get(timeout=IDLE_S)
            except Empty:
                if self._given_back():
                    return None

    def _given_back(self) -> bool:
        with self._guard:
            if self.held or self.objects or not self._jobs.empty():
                return False
            self.usable = False
            return True

    def _submit(self, job: Callable[[], None] | None) -> bool:
        """Hand a job to the thread; False where it has ended."""
        with self._guard:
            if self.usable:
                self._jobs.put(job)
            return self.usable

    def do(self, action: Callable[[Any], T], doing: str, timeout: float | None = None) -> T:
        """Run ``action(session)`` in the connection's thread.

        Args:
            action: What to do.
            doing: What it is called in messages.
            timeout: Seconds; ``MPQ_RPC_TIMEOUT`` for None.

        Raises:
            DeviceLostError: The server does not answer, or ended the connection.
            DeviceError: A function of the server failed.
        """
        import tvm

        limit = timeout_s() if timeout is None else timeout
        future: Future[T] = Future()
        if not self._submit(lambda: settle(future, lambda: action(self._session))):
            raise self._lost(doing, "the connection had ended before")
        try:
            return future.result(limit)
        except TimeoutError as error:
            raise self._lost(doing, f"no answer within {limit:g} s") from error
        except tvm.error.RPCError as error:
            raise self._failed(doing, error) from error
        except DeviceError:
            raise
        except (RuntimeError, OSError) as error:
            raise self._lost(doing, str(error).strip()[:300]) from error

    def call(self, name: str, timeout: float | None = None, **arguments: Any) -> Any:
        """Call one of the service's functions; raise what it raised there."""
        text = json.dumps(arguments)
        answer = json.loads(
            self.do(lambda s: str(s.get_function(PREFIX + name)(text)), f"calling {name}", timeout)
        )
        if "error" in answer:
            raise _raised_there(answer["error"], self.address)
        return answer["result"]

    def upload(self, path: Path, target: str) -> None:
        """Copy a file into the session's folder, as ``target``."""
        content = bytearray(path.read_bytes())
        self.do(lambda session: session.upload(content, target), f"uploading {path.name}")

    def keep(self, make: Callable[[Any], Any], doing: str) -> int:
        """Make a remote object; return its key."""
        key = next(self._numbers)

        def made(session: Any) -> None:
            self.objects[key] = make(session)

        self.do(made, doing)
        return key

    def forget(self, key: int) -> None:
        """Drop a remote object, some time, without waiting."""
        self._submit(lambda: self.objects.pop(key, None))

    def close(self) -> None:
        """Give the device back, without waiting."""
        self._submit(None)
        self.usable = False

    def _lost(self, doing: str, found: str) -> DeviceLostError:
        error = DeviceLostError(
            f"the device was lost while {doing}",
            where=f"{self.address.name}, server {self.server}",
            expected="a server that answers",
            found=found,
            remedy="look at the server's output, start it again with `mpq device serve`, and run "
            "this again: a profile goes on from what was measured",
        )
        if self.usable:
            self.usable, self.loss = False, error
            self._jobs.put(None)  # the thread ends, should the device ever answer
        return error

    def _failed(self, doing: str, error: Exception) -> DeviceError:
        return DeviceError(
            f"the device failed while {doing}",
            where=f"{self.address.name}, server {self.server}",
            found=str(error).strip()[-600:],
            remedy="compare the versions that `mpq device list` shows with those of `mpq doctor`",
        )


def _raised_there(record: dict[str, Any], address: Address) -> errors.MpqError:
    kind = getattr(errors, record["error"], DeviceError)
    parts = {name: record.get(name) for name in ("where", "expected", "found", "remedy")}
    where = address.name if parts["where"] is None else f"{address.name}: {parts['where']}"
    error: errors.MpqError = kind(record["message"], **(parts | {"where": where}))
    return error

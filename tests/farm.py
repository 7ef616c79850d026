"""A tracker and servers as processes of this machine, for the tests of remote devices."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mpq_compile.errors import DeviceError
from mpq_compile.runtime import tracker
from mpq_compile.runtime.processes import PR_SET_PDEATHSIG

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0
_PATH = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
_SERVE = ("-m", "mpq_compile.runtime.serve")


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], limit_s: float = START_S) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _end_with_parent() -> None:
    """Be killed when the tests are: an interrupted run leaves nothing behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Process:
    """A process in a group of its own, so that nothing of it can be left over."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        # What it writes goes with it, even where it is killed.
        self.folder = tempfile.TemporaryDirectory(prefix="mpq-farm-")
        self.log = Path(self.folder.name) / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                start_new_session=True,
                preexec_fn=_end_with_parent,
                stdout=log,
                stderr=log,
                env=os.environ | _PATH | {"TMPDIR": self.folder.name} | dict(environment or {}),
            )

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once, as a lost machine would."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8")

    def members(self) -> list[int]:
        """Return the processes of its group that are alive."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._has(pid)]

    def _has(self, pid: int) -> bool:
        try:
            return os.getpgid(pid) == self.process.pid
        except ProcessLookupError:
            return False


class Farm:
    """A tracker and its servers, by the address they listen on."""

    def __init__(self) -> None:
        self.port = free_port()
        self.servers: dict[str, Process] = {}
        self.tracker = self._tracker()

    def _tracker(self) -> Process:
        words = ("-m", "mpq_compile", "device", "tracker", "--port", str(self.port))
        process = Process(*words)
        until(lambda: self._answers() or process.process.poll() is not None)
        assert self._answers(), process.output
        return process

    def _answers(self) -> bool:
        try:
            tracker.servers("127.0.0.1", self.port)
        except DeviceError:
            return False
        return True

    def restart_tracker(self) -> None:
        """Kill the tracker and start it again at its port."""
        self.tracker.kill()
        self.tracker = self._tracker()

    def serve(self, key: str, count: int = 1) -> Process:
        """Start a server and wait until ``count`` of its key are free."""
        process = self.start(key)
        self.wait_for(key, process, count)
        return process

    def start(self, key: str, *program: str, **environment: str) -> Process:
        """Start a server without waiting; ``program`` stands in for the usual one."""
        port = free_port()
        words = ("--tracker", f"127.0.0.1:{self.port}", "--key", key, "--port", str(port))
        process = Process(*(program or _SERVE), *words, environment=environment)
        self.servers[f"127.0.0.1:{port}"] = process
        return process

    def wait_for(self, key: str, process: Process, count: int = 1) -> None:
        """Wait until ``count`` servers of a key are free, one of them of the process."""
        end = time.monotonic() + START_S
        while self.free(key) < count:
            late = time.monotonic() > end or process.process.poll() is not None
            assert not late, f"server: {process.output}\ntracker: {self.tracker.output}"
            time.sleep(0.05)

    def free(self, key: str) -> int:
        """Return how many servers of a key are free."""
        known = tracker.servers("127.0.0.1", self.port)
        return known[key].free if key in known else 0

    def target(self, key: str) -> str:
        """Return the address of a key."""
        return f"rpc://127.0.0.1:{self.port}/{key}"

    def close(self) -> None:
        """End everything."""
        for process in (*self.servers.values(), self.tracker):
            process.kill()


@contextmanager
def farm() -> Iterator[Farm]:
    """Run a farm."""
    made = Farm()
    try:
        yield made
    finally:
        made.close()

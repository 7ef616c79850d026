"""A tracker and servers as processes of this machine, for the tests of remote devices."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpq_compile.errors import DeviceError
from mpq_compile.runtime import tracker

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0


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


class Process:
    """A process in a group of its own, so that nothing of it can be left over."""

    def __init__(self, *arguments: str) -> None:
        log, name = tempfile.mkstemp(prefix="mpq-test-")
        self.log = Path(name)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            start_new_session=True,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
        os.close(log)

    def kill(self) -> None:
        """End it at once, as a lost machine would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.unlink()

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
    """A tracker and its servers."""

    def __init__(self) -> None:
        self.port = free_port()
        self.servers: list[Process] = []
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

    def serve(self, key: str, *program: str) -> Process:
        """Start a server and wait until it is free; ``program`` stands in for the usual one."""
        before = self.free(key)
        words = ("--tracker", f"127.0.0.1:{self.port}", "--key", key, "--port", str(free_port()))
        process = Process(*(program or ("-m", "mpq_compile.runtime.serve")), *words)
        self.servers.append(process)
        until(lambda: self.free(key) > before or process.process.poll() is not None)
        assert self.free(key) > before, process.output
        return process

    def free(self, key: str) -> int:
        """Return how many servers of a key are free."""
        known = tracker.servers("127.0.0.1", self.port)
        return known[key].free if key in known else 0

    def target(self, key: str) -> str:
        """Return the address of a key."""
        return f"rpc://127.0.0.1:{self.port}/{key}"

    def close(self) -> None:
        """End everything."""
        for process in (*self.servers, self.tracker):
            process.kill()


@contextmanager
def farm() -> Iterator[Farm]:
    """Run a farm."""
    made = Farm()
    try:
        yield made
    finally:
        made.close()

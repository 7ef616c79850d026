"""Processes of a server: each ends with its parent, and networks are timed in fresh ones.

A server forks a process for each session. Programs are never started anew for that: where a device
is emulated, its kernel could not start them.
"""

from __future__ import annotations

import ctypes
import ipaddress
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import IO, Any, TypeVar

from mpq_compile.errors import DeviceError

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
_LOOK_S = 0.5
# Turns JSON data into JSON data, in a process of its own.
Work = Callable[[Any], Any]


def die_with_parent() -> None:
    """Let every process that is forked from now on end with its parent, however that ends."""
    os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def until_ended(work: Callable[[], None]) -> None:
    """Do work that never returns, until Ctrl-C or SIGTERM; then end the processes it forked.

    TVM's threads never return. They are made by a daemon thread here, so that they are daemons
    too and the interpreter can end.

    Raises:
        KeyboardInterrupt: At either signal.
        MpqError: What the work raised.
    """
    future: Future[None] = Future()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        threading.Thread(target=settle, args=(future, work), daemon=True).start()
        # A signal that comes just before a wait without limit begins is seen when the wait ends.
        while not wait([future], _LOOK_S).done:
            pass
        future.result()
    finally:
        end_children()
        signal.signal(signal.SIGTERM, before)


def end_children() -> None:
    """Kill the processes of sessions; what they forked ends with them."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def settle(future: Future[T], action: Callable[[], T]) -> None:
    """Give a future the result of an action, or its exception."""
    try:
        future.set_result(action())
    except BaseException as error:
        future.set_exception(error)


def warn_where_open(host: str) -> None:
    """Say so where other machines reach what listens on an address."""
    with suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    text = "TVM's RPC has no authentication: whoever reaches this port runs code here"
    print(f"warning: listening on {host}; {text}", file=sys.stderr, flush=True)


def port_taken(host: str, port: int, error: Exception) -> DeviceError:
    """Return what to say where a port cannot be listened on."""
    return DeviceError(
        "cannot listen there",
        where=f"{host}:{port}",
        expected="an address of this machine and a free port",
        found=error,
        remedy="choose another --port, or end the process that has it",
    )


class FreshProcesses:
    """Forks a process for each piece of work, from one that has never run a kernel.

    TVM's threads do not survive a fork, so the process that forks must not have any. It has to be
    made before the first kernel runs.

    Args:
        work: What each process does.
        limit_s: Seconds after which a process is ended.
    """

    def __init__(self, work: Work, limit_s: float) -> None:
        self._limit_s = limit_s
        requests, self._requests = _pipe()
        self._answers, answers = _pipe()
        if os.fork() == 0:
            os.closerange(3, _lowest(requests, answers))
            self._requests.close()
            self._answers.close()
            _fork_for_each(work, limit_s, requests, answers)
            os._exit(0)
        requests.close()
        answers.close()

    def run(self, data: Any) -> Any:
        """Do the work in a fresh process; raise ``DeviceError`` where that failed."""
        self._requests.write(json.dumps(data) + "\n")
        self._requests.flush()
        line = self._answers.readline()
        answer = json.loads(line) if line else {"failed": "the process that forks has ended"}
        if "failed" in answer:
            raise DeviceError(
                "a fresh process of the device failed",
                expected=f"an answer within {self._limit_s:g} s",
                found=answer["failed"],
                remedy="`mpq run` shows whether the network runs there, and how long it takes",
            )
        return answer["result"]


def _fork_for_each(work: Work, limit_s: float, requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, limit_s)  # its default action ends the process
            _answer(work, line, answers)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            found = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            _say(answers, {"failed": found})


def _answer(work: Work, line: str, answers: IO[str]) -> None:
    try:
        answer = {"result": work(json.loads(line))}
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"[-2000:]}
    _say(answers, answer)


def _say(answers: IO[str], answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _pipe() -> tuple[IO[str], IO[str]]:
    reader, writer = os.pipe()
    return os.fdopen(reader, "r", encoding="utf-8"), os.fdopen(writer, "w", encoding="utf-8")


def _lowest(*streams: IO[str]) -> int:
    return min(stream.fileno() for stream in streams)

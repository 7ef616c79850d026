"""TVM's RPC tracker: what is asked of it, and a process that runs it.

A tracker knows which servers there are and which are free. Each question is a connection of its
own with a time limit, so that a tracker that was restarted, or one that hangs, is nothing special.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mpq_compile.errors import DeviceError, nearest
from mpq_compile.runtime.processes import port_taken, until_ended, warn_where_open
from mpq_compile.runtime.threads import thread_count

HOST, PORT = "127.0.0.1", 9190
_ANSWER_S = 10.0
_PAUSE_S = 0.2
_REMEDY = "start one with `mpq device tracker`; docs/remote.md shows how to tunnel to another host"


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Servers that share a key.

    Args:
        addresses: ``host:port`` of each.
        free: How many wait for a client.
        pending: How many clients wait for one.
    """

    addresses: Sequence[str]
    free: int
    pending: int


def servers(host: str, port: int) -> dict[str, Servers]:
    """Return the servers that a tracker knows, by key.

    Raises:
        DeviceError: There is no tracker, or it does not answer.
    """
    summary = _ask(host, port, "SUMMARY", [], _ANSWER_S, "an answer")
    addresses: dict[str, list[str]] = {}
    for entry in summary["server_info"]:
        key = entry["key"].removeprefix("server:")
        addresses.setdefault(key, []).append(":".join(map(str, entry["addr"])))
    queues = summary["queue_info"]
    return {
        key: Servers(
            addresses=sorted(found),
            free=queues.get(key, {}).get("free", 0),
            pending=queues.get(key, {}).get("pending", 0),
        )
        for key, found in sorted(addresses.items())
    }


def await_tracker(host: str, port: int, limit_s: float) -> None:
    """Wait until a tracker answers: it may have been started at the same moment.

    Raises:
        DeviceError: None answers within ``limit_s`` seconds.
    """
    end = time.monotonic() + limit_s
    while True:
        try:
            servers(host, port)
            return
        except DeviceError:
            if time.monotonic() >= end:
                raise
        time.sleep(_PAUSE_S)


def require_key(host: str, port: int, key: str) -> Servers:
    """Return the servers of a key; raise ``DeviceError`` where the tracker has none."""
    known = servers(host, port)
    if key not in known:
        raise DeviceError(
            f"the tracker has no device with the key {key!r}",
            where=f"tracker {host}:{port}",
            expected=f"at least one `mpq device serve --key {key}`",
            found=", ".join(known) or "no device at all",
            remedy=nearest(key, known) if known else "start the server on the device",
        )
    return known[key]


def request(host: str, port: int, key: str, wait_s: float) -> tuple[str, int, str]:
    """Wait for a free server of a key; return its host, its port and the key of one session.

    Raises:
        DeviceError: None became free within ``wait_s`` seconds, or the tracker does not answer.
    """
    expected = f"a free device with the key {key!r}"
    answer = _ask(host, port, "REQUEST", [key, "", 1], wait_s, expected)
    url, server_port, match_key = answer
    return str(url), int(server_port), str(match_key)


def _ask(
    host: str, port: int, code: str, words: Sequence[Any], wait_s: float, expected: str
) -> Any:
    """Ask one question, by its name in TVM; return the answer's content."""
    thread_count()  # before TVM is imported: it reads its thread count once
    from tvm.rpc import base

    where = f"tracker {host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
            connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            magic = struct.unpack("<i", base.recvall(connection, 4))[0]
            if magic != base.RPC_TRACKER_MAGIC:
                raise OSError("what answers there is not a tracker")
            base.sendjson(connection, [getattr(base.TrackerCode, code), *words])
            connection.settimeout(wait_s)
            status, content = base.recvjson(connection)
    except TimeoutError as error:
        raise DeviceError(
            "the tracker gave no answer in time",
            where=where,
            expected=f"{expected} within {wait_s:g} s",
            found="none",
            remedy="`mpq device list` shows which devices are busy; wait, or end what uses them",
        ) from error
    except (OSError, ValueError) as error:
        raise DeviceError(
            "the tracker cannot be reached",
            where=where,
            expected="a TVM RPC tracker",
            found=error,
            remedy=_REMEDY,
        ) from error
    if status != base.TrackerCode.SUCCESS:
        raise DeviceError("the tracker refused", where=where, found=content, remedy=_REMEDY)
    return content


def run_tracker(
    host: str = HOST, port: int = PORT, ready: Callable[[], None] = lambda: None
) -> None:
    """Run a tracker in this process until it is ended; ``ready`` is called once it listens.

    Raises:
        DeviceError: The port is taken, or tornado, which TVM's tracker needs, is missing.
    """
    try:
        from tvm.rpc.tracker import PopenTrackerServerState
    except ImportError as error:
        raise DeviceError(
            "TVM's tracker needs tornado", found=error, remedy="pip install tornado"
        ) from error

    def track() -> None:
        try:
            state = PopenTrackerServerState(host, port, port + 1, silent=True)
        except (OSError, ValueError) as error:
            raise port_taken(host, port, error) from error
        logging.getLogger("RPCTracker").setLevel(logging.WARNING)
        print(f"tracker at {host}:{port}", file=sys.stderr, flush=True)
        ready()
        state.thread.join()

    warn_where_open(host)
    until_ended(track)

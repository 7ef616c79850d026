"""The server of a device: ``python -m mpq_compile.runtime.serve --tracker HOST:PORT --key KEY``.

It needs TVM, its FFI, NumPy and this package, and it imports neither torch nor the command line.
TVM's RPC has no authentication: whoever reaches the port runs code on the device.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from mpq_compile.errors import MpqError
from mpq_compile.runtime.environment import patience_s
from mpq_compile.runtime.processes import (
    die_with_parent,
    end_children,
    port_taken,
    until_ended,
    warn_where_open,
)
from mpq_compile.runtime.rpc_address import MOST_PORT, Address
from mpq_compile.runtime.service import register
from mpq_compile.runtime.threads import thread_count
from mpq_compile.runtime.tracker import await_tracker

HOST, PORT = "127.0.0.1", 9090
# Servers of one machine that are told no port take the next free one.
_PORTS = 100
_PAUSE_S = 0.5
_TRACKER_S = 5.0
# A client that vanished without a word frees the device after idle + count × interval seconds.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


def serve(
    address: Address,
    host: str = HOST,
    port: int | None = None,
    advertise: str | None = None,
    functions: Callable[[], None] = register,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve this machine under a tracker's key until the process is ended.

    Args:
        address: Tracker and key.
        host, port: Where to listen; None for the first free port from 9090 on.
        advertise: Host that clients reach it by; None for the one that the tracker sees.
        functions: Registers what sessions offer.
        ready: Called with the port each time the server starts to listen.

    Raises:
        DeviceError: No tracker answers, the port is taken, or a setting is wrong.
        KeyboardInterrupt: At Ctrl-C and at SIGTERM; no process is left behind.
    """
    warn_where_open(host)
    patience_s()  # a wrong setting is said here, not to clients
    threads = thread_count()  # before TVM is imported: it reads its thread count once
    await_tracker(address.host, address.port, _TRACKER_S)
    functions()
    # Each session is forked from this process, which has registered the functions.
    multiprocessing.set_start_method("fork", force=True)
    die_with_parent()
    threading.excepthook = _say_why
    with tempfile.TemporaryDirectory(prefix="mpq-serve-") as folder:
        tempfile.tempdir = folder  # TVM makes the folder of each session there
        until_ended(lambda: _serve_for_ever(address, host, port, advertise, threads, ready))


def _say_why(ended: threading.ExceptHookArgs) -> None:
    """Say why TVM's loop ended: a crashed session is no reason for a traceback."""
    print(f"{ended.exc_value}; serving goes on", file=sys.stderr, flush=True)


def _serve_for_ever(
    address: Address,
    host: str,
    port: int | None,
    advertise: str | None,
    threads: int,
    ready: Callable[[int], None],
) -> None:
    ports = range(PORT, PORT + _PORTS) if port is None else range(port, port + 1)
    while True:
        taken = _listen(address, host, ports, advertise, threads, ready)
        # One session crashed, or the tracker was away for a minute: TVM's loop has ended.
        ports = range(taken, taken + 1)
        end_children()
        os.chdir(tempfile.gettempdir())
        time.sleep(_PAUSE_S)


def _listen(
    address: Address,
    host: str,
    ports: range,
    advertise: str | None,
    threads: int,
    ready: Callable[[int], None],
) -> int:
    """Serve sessions until TVM's loop ends; return the port it listened on."""
    from tvm.rpc.server import PopenRPCServerState

    try:
        state = PopenRPCServerState(
            host,
            ports.start,
            ports.stop,
            tracker_addr=(address.host, address.port),
            key=address.key,
            custom_addr=advertise,
            silent=True,
        )
    except (OSError, ValueError) as error:
        raise port_taken(host, ports.start, error) from error
    logging.getLogger("RPCServer").setLevel(logging.WARNING)
    _keep_alive(state.sock)
    where = f"{host}:{state.port}"
    print(f"serving {address.name} at {where}, {threads} threads", file=sys.stderr, flush=True)
    ready(int(state.port))
    state.thread.join()
    state.sock.close()
    return int(state.port)


def _keep_alive(listening: socket.socket) -> None:
    """Have connections probed; Linux hands the options of a listening socket on to them."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m mpq_compile.runtime.serve",
        description="Serve this machine over TVM's RPC, which has no authentication: whoever "
        "reaches the port runs code here. Keep it on loopback and tunnel it.",
    )
    made.add_argument("--tracker", required=True, metavar="HOST:PORT")
    made.add_argument("--key", required=True, help="Name of this kind of device.")
    made.add_argument("--host", default=HOST, help="Address to listen on; loopback by default.")
    made.add_argument("--port", type=port_number, help=f"The first free from {PORT} by default.")
    made.add_argument("--advertise", help="Host that clients reach it by, where it is another.")
    return made


def port_number(text: str) -> int:
    """Read a port; raise what argparse turns into a message."""
    if not text.isdecimal() or not 0 < int(text) <= MOST_PORT:
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to {MOST_PORT}, not {text}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the process is ended; return the exit code."""
    given = parser().parse_args(arguments)
    try:
        address = Address.of(given.tracker, given.key)
        serve(address, given.host, given.port, given.advertise)
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

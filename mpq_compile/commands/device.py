"""``mpq device``: serve this machine, run a tracker, list what is there. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from mpq_compile.commands import options
from mpq_compile.commands.default_group import DefaultGroup
from mpq_compile.commands.outcome import Outcome
from mpq_compile.runtime import serve as server
from mpq_compile.runtime import tracker as trackers
from mpq_compile.runtime.rpc_address import Address, parse_endpoint

_OPEN = (
    "TVM's RPC has no authentication: whoever reaches the port runs code on this machine. "
    "Stay on loopback and tunnel it (ssh -L, -R), as docs/remote.md shows."
)


class _Group(DefaultGroup):
    default = "list"


app = typer.Typer(cls=_Group, help="Remote devices: list (also without a verb), serve, tracker.")

Tracker = Annotated[
    str,
    typer.Option("--tracker", metavar="HOST:PORT", envvar="MPQ_TRACKER", help="The tracker."),
]
_TRACKER = f"{trackers.HOST}:{trackers.PORT}"
_TRACKER_HERE = typer.Option("--port", min=1, max=65535, help="Port to listen on.")
_SERVER_HERE = typer.Option(
    "--port",
    min=1,
    max=65535,
    help=f"Port to listen on; the first free one from {server.PORT} on where none is given.",
)
Host = Annotated[str, typer.Option("--host", help="Address to listen on. " + _OPEN)]


@app.command("tracker", epilog=_OPEN)
def tracker(
    host: Host = trackers.HOST,
    port: Annotated[int, _TRACKER_HERE] = trackers.PORT,
    as_json: options.Json = False,
) -> Outcome:
    """Run a tracker, which knows the devices and who uses them, until Ctrl-C or SIGTERM.

    With --json, the object is printed once the tracker listens.
    """
    listening = {"tracker": f"{host}:{port}", "host": host, "port": port}
    return Outcome(
        service=lambda announce: trackers.run_tracker(host, port, lambda: announce(listening))
    )


@app.command("serve", epilog=_OPEN)
def serve(
    key: Annotated[str, typer.Option("--key", help="Name of this kind of device.")],
    tracker: Tracker = _TRACKER,
    host: Host = server.HOST,
    port: Annotated[int | None, _SERVER_HERE] = None,
    advertise: Annotated[
        str | None,
        typer.Option("--advertise", metavar="HOST", help="Host that clients reach it by."),
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Serve this machine as a device, until Ctrl-C or SIGTERM.

    With --json, the object is printed once the server listens.
    """
    address = Address.of(tracker, key)

    def run(announce: Callable[[Mapping[str, Any]], None]) -> None:
        def listening(taken: int) -> None:
            announce(
                {
                    "target": address.name,
                    "tracker": address.tracker,
                    "key": address.key,
                    "server": f"{host}:{taken}",
                    "host": host,
                    "port": taken,
                }
            )

        server.serve(address, host, port, advertise, ready=listening)

    return Outcome(service=run)


@app.command("list")
def list_devices(tracker: Tracker = _TRACKER, as_json: options.Json = False) -> Outcome:
    """List the devices of a tracker, whether they are free, and what they are.

    A device that is free is asked, for a moment; one that is busy is not.
    """
    host, port = parse_endpoint(tracker)
    rows = [
        row
        for key, found in trackers.servers(host, port).items()
        for row in _rows(Address(host=host, port=port, key=key), found)
    ]
    data = {"tracker": tracker, "devices": rows}
    return Outcome(data=data, show=lambda console: _show(console, tracker, rows))


def _rows(address: Address, found: trackers.Servers) -> list[dict[str, Any]]:
    """Return one row a server; those that answer stand first."""
    from mpq_compile.runtime.remote import free_devices

    free = free_devices(address, found.free)
    answers = [{"server": d.server, "state": "free", **d.description} for d in free]
    for device in free:
        device.close()
    silent = sorted(set(found.addresses) - {row["server"] for row in answers})
    rows = answers + [{"server": server, "state": "busy"} for server in silent]
    return [{"key": address.key, "target": address.name, **row} for row in rows]


def _show(console: Console, tracker: str, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        console.print(f"no device at {tracker}")
        return
    for row in rows:
        console.print(
            Text.assemble((row["target"], "bold"), f"  at {row['server']}, {row['state']}")
        )
        if "tier" in row:
            versions = ", ".join(f"{name} {text}" for name, text in row["versions"].items())
            console.print(
                f"  {row['tier']}, {row['threads']} threads, {row['machine']}; {versions}"
            )
            console.print(f"  {row['fingerprint']}")

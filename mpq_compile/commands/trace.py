"""``mpq trace``: where the time of a deployed network goes, kernel by kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mpq_compile.commands import options
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.views import show_notes
from mpq_compile.cost.targets import running_device
from mpq_compile.runtime.network import own_device, reached_device
from mpq_compile.runtime.trace import CALLS, Trace, traceable, write_trace


def trace(
    artifact: options.Artifact,
    target: options.RunTarget = None,
    calls: Annotated[int, typer.Option("--calls", min=5, help="Calls that are timed.")] = CALLS,
    slowest: Annotated[
        int | None,
        typer.Option("--slowest", min=1, metavar="N", help="Show the N that take longest."),
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Time every kernel of an artifact in a fresh process, on random inputs.

    A kernel's time is from the end of the one before it to its own end; "busy" is the share of it
    in which the threads computed instead of waiting for each other. The trace is kept beside the
    artifact, where `mpq report` finds it.
    """
    manifest, plan = traceable(artifact)
    device = own_device(manifest) if target is None else running_device(target)
    with device.lock():
        found = device.trace_network(artifact, calls)
    notes = []
    if target is None or device.name == reached_device(manifest):
        # An artifact that may not be written to is traced all the same.
        try:
            write_trace(artifact, found)
        except OSError as error:
            notes.append(f"not kept beside the artifact: {error.strerror or error}")
    else:
        notes.append(f"traced on {device.name}: not kept beside the artifact")

    def show(console: Console) -> None:
        console.print(trace_table(found, plan.assignment, slowest))
        console.print(
            f"a call: {found.call_us:.4g} µs; traced {found.total_us:.4g} µs from the first kernel "
            f"to the end of the last; medians of {found.calls} calls, {found.threads} threads"
        )
        show_notes(console, notes)

    return Outcome(data={**found.to_json(), "notes": notes}, show=show)


def trace_table(trace: Trace, assignment: Mapping[str, str], slowest: int | None) -> Table:
    """Return the kernels in the order of the network, or the slowest of them first."""
    table = Table("site or node", "bits", "time [µs]", "share", "busy", "kernel")
    for column in table.columns[2:5]:
        column.justify = "right"
    table.columns[0].overflow = table.columns[5].overflow = "fold"
    steps = list(trace.steps)
    if slowest is not None:
        steps = sorted(steps, key=lambda step: -step.time_us)[:slowest]
    for step in steps:
        table.add_row(
            step.name,
            assignment.get(step.name, ""),
            f"{step.time_us:.2f}",
            f"{step.time_us / trace.total_us:.1%}",
            f"{step.busy:.0%}",
            step.kernel.removeprefix("k_"),
        )
    return table

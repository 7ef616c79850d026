"""The demo's tables, on standard output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def _console() -> Console:
    # Made at each use: the command line may have redirected standard output.
    return Console(width=110, highlight=False)


def print_title(samples: int) -> None:
    """Say what the numbers are."""
    console = _console()
    console.print("[bold]mpq demo[/]: handwritten digits (scikit-learn), trained here just now")
    console.print(
        f"accuracy and SQNR: {samples} held-out digits, batch 1 deployed; "
        "measured: median of calls in turns, one process"
    )


def print_plan(result: Mapping[str, Any]) -> None:
    """Print one part: the table, the verdict, the choice at each site."""
    console = _console()
    console.print()
    console.print(f"[bold]{result['title']}[/]")
    budget = ", ".join(f"{name} ≤ {value:.4g}" for name, value in result["budget"].items())
    console.print(f"budget: {budget}")
    console.print(_rows(result))
    for line in _verdict(result):
        console.print(line)
    console.print(_sites(result["assignment"]))


def _rows(result: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("network")
    for title in ("accuracy %", "SQNR dB", "loss", "size kB", "predicted ms", "measured ms"):
        table.add_column(title, justify="right")
    table.add_column("speed-up", justify="right")
    table.add_column("in budget")
    for row in result["rows"]:
        style = None if row["uniform"] else "bold"
        table.add_row(*_cells(row), style=style)
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['accuracy']:.2f}",
        "exact" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}",
        f"{row['loss']:.2e}",
        f"{row['size_kb']:.1f}",
        "" if row["predicted_ms"] is None else f"{row['predicted_ms']:.4f}",
        "—" if row["measured_ms"] is None else f"{row['measured_ms']:.4f}",
        "—" if row["speedup"] is None else f"{row['speedup']:.2f}×",
        "yes" if row["within"] else "no",
    ]


def _verdict(result: Mapping[str, Any]) -> list[str]:
    lines = []
    if result["mixed"] and result["better_than_best_uniform"]:
        best = result["best_uniform"] or "no uniform candidate fits the budget"
        lines.append(f"mixed, and better than the best uniform choice within the budget ({best})")
    elif result["mixed"]:
        lines.append(f"mixed, but no better than {result['best_uniform']}")
    lines += [f"note: {note}" for note in result["notes"]]
    certificate = result["certificate"]
    lines.append(
        f"solver: {certificate['status']}, gap {certificate['gap']:.1e}, "
        f"{certificate['wall_s'] * 1e3:.1f} ms"
    )
    verification = result["verification"]
    if verification:
        lines.append(
            f"verified in {verification['processes']} fresh processes: "
            f"{verification['latency_ms']:.4f} ms, 95 % upper "
            f"{verification['latency_ms_upper95']:.4f} ms: {verification['status']} "
            f"(round {verification['rounds']})"
        )
    if result["bit_exact"] is not None:
        equal = "equal bit for bit" if result["bit_exact"] else "equal within float tolerance"
        lines.append(f"device against the PyTorch oracle on the held-out digits: {equal}")
    return lines


def _sites(assignment: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("site")
    table.add_column("choice")
    for site, name in assignment.items():
        table.add_row(site, name)
    return table

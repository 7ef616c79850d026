"""``mpq report``: promise against measurement, in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mpq_compile.commands.options import Json
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.reading import read_json, read_plan

if TYPE_CHECKING:
    from mpq_compile.report.frontier import FrontierReport


def report(
    source: Annotated[
        Path,
        typer.Argument(metavar="DIR|PLAN", help="Artifact, or a plan.json.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The page that is written.")
    ] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option("--title", help="Name of the network; else the folder's.")
    ] = None,
    frontier: Annotated[
        list[Path] | None,
        typer.Option(
            "--frontier", metavar="FILE", help="What `mpq frontier --json` printed; repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Write all that is known of an artifact or a plan as one HTML file that loads nothing."""
    from mpq_compile.report.page import write_report

    frontiers = [_frontier(path) for path in frontier or []]
    found = source if source.is_dir() else read_plan(source)
    page = write_report(found, output, title, frontiers)
    count = page.stat().st_size

    def show(console: Console) -> None:
        console.print(f"report written to {page} ({count / 1e3:.0f} kB)")

    return Outcome(data={"report": page, "bytes": count}, show=show)


def _frontier(path: Path) -> FrontierReport:
    from mpq_compile.report.frontier import FrontierReport

    return FrontierReport.from_json(read_json(path))

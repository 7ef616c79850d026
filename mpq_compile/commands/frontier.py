"""``mpq frontier``: the whole trade-off between cost and loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mpq_compile.commands import options
from mpq_compile.commands.groups import grouped
from mpq_compile.commands.outcome import Outcome
from mpq_compile.commands.request import Request
from mpq_compile.commands.views import number, show_notes
from mpq_compile.errors import PlanError

if TYPE_CHECKING:
    from mpq_compile.report.frontier import FrontierReport, Point

_PICTURES = (".png", ".svg", ".pdf", ".html")


@grouped
def frontier(
    model: options.Model,
    data: options.DataFile,
    images: options.Images,
    limits: options.Limits,
    choice: options.Choice,
    recipe: options.Recipe,
    measuring: options.Measuring,
    axis: Annotated[
        str,
        typer.Option(
            "--axis",
            help="size_mb, latency_ms, bops, energy_mj or avg_bits; several, with commas: a grid.",
        ),
    ] = "size_mb",
    points: Annotated[
        int, typer.Option("--points", min=0, help="Points that are measured on the task.")
    ] = 12,
    evaluate: options.Evaluate = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Build these points too, and time them.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", min=0, help="Differences of drop up to this are noise."),
    ] = 0.0,
    plot: Annotated[
        list[Path] | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw: .png, .svg, .pdf, or .html; repeatable."
        ),
    ] = None,
    as_json: options.Json = False,
) -> Outcome:
    """Compute every breakpoint between cost and loss, and measure some of them."""
    request = Request(
        model=model,
        data=data,
        images=images,
        limits=limits,
        goal=options.Goal(evaluate=evaluate),
        choice=choice,
        recipe=recipe,
        measuring=measuring,
    )
    pictures = plot or []
    for path in pictures:
        _check_picture(path)
    report = make_frontier(request, axis, points, measure, tolerance)
    for path in pictures:
        _draw(report, path)
    return _outcome(report, pictures)


def make_frontier(
    request: Request, axis: str, points: int, measure: bool, tolerance: float
) -> FrontierReport:
    """Compute what was asked for."""
    loaded = request.load()
    from mpq_compile import tradeoff

    return tradeoff.frontier(
        loaded.model,
        loaded.example_inputs,
        loaded.calibration,
        axis=[name.strip() for name in axis.split(",")],
        points=points,
        measure=measure,
        tolerance=tolerance,
        **request.keywords(),
    )


def _check_picture(path: Path) -> None:
    """Refuse what cannot be drawn before minutes are spent."""
    if path.suffix in _PICTURES and path.absolute().parent.is_dir():
        return
    known = path.suffix in _PICTURES
    raise PlanError(
        "the picture cannot be written there",
        where=str(path),
        expected=f"a file {', '.join(_PICTURES)} in a folder that exists",
        found=f"no folder {path.parent}" if known else f"suffix {path.suffix!r}",
        remedy="create the folder" if known else "name it .png, or .html to look into",
    )


def _draw(report: FrontierReport, path: Path) -> None:
    if path.suffix == ".html":
        from mpq_compile.report.frontier_page import save_frontier_page

        save_frontier_page(report, path)
        return
    from mpq_compile.report.frontier_plot import save_frontier_picture

    save_frontier_picture(report, path)


def _outcome(report: FrontierReport, pictures: list[Path]) -> Outcome:
    def show(console: Console) -> None:
        kind = "all, proven" if report.complete else "spread over the range"
        console.print(f"{report.breakpoints} breakpoints ({kind}) on {report.target}")
        console.print(_table(report))
        show_notes(console, report.notes)
        for path in pictures:
            console.print(f"picture written to {path}")

    return Outcome(data={**report.to_json(), "pictures": pictures}, show=show)


def _table(report: FrontierReport) -> Table:
    axes = [f"{name} [{unit}]" for name, unit in report.axes.items()]
    columns = [*axes, f"{report.metric} loss", "candidates"]
    measured = [] if not report.evaluated else [f"{report.measure} [{report.measure_unit}]"]
    timed = ["measured [ms]"] if any(p.measured for p in report.points) else []
    table = Table(*columns, *measured, *timed, "")
    for point in _listed(report):
        costs = [point.cost, *(point.costs[name] for name in list(report.axes)[1:])]
        table.add_row(*map(number, costs), *_cells(point, bool(measured), bool(timed)))
    return table


def _listed(report: FrontierReport) -> list[Point]:
    """Return the points of the table by ascending cost, none twice."""
    shown = report.evaluated or report.points[:: max(1, len(report.points) // 12)]
    own = {point.candidates: point for point in shown}
    # A uniform assignment may lie on the frontier itself, whose point knows more of it.
    for point in report.uniform:
        on_it = own.get(point.candidates)
        own[point.candidates] = replace(on_it, uniform=point.uniform) if on_it else point
    return sorted(own.values(), key=lambda p: (p.cost, -p.loss))


def _cells(point: Point, evaluated: bool, timed: bool) -> list[str]:
    cells = [number(point.loss), _counts(point)]
    if evaluated:
        score = "" if point.score is None else f"{number(point.score)} "
        cells.append(f"{score}({number(point.drop)} below float)" if score else number(point.drop))
    if timed:
        cells.append(number(point.measured.latency_ms if point.measured else None))
    return [*cells, "worse than a cheaper one" if point.inverted else ""]


def _counts(point: Point) -> str:
    if point.uniform is not None:
        return f"all {point.uniform}"
    names = sorted(set(point.candidates), key=point.candidates.count, reverse=True)
    return ", ".join(f"{point.candidates.count(name)} × {name}" for name in names)

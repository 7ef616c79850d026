"""A static picture of a frontier on two axes: where points lie, and what they lose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm, Normalize

from mpq_compile.report.frontier import FrontierReport, Point

# A logarithmic scale is used where values differ by more than this factor.
_LOGARITHMIC = 20.0


def save_frontier_map(report: FrontierReport, path: str | Path) -> Path:
    """Draw the first two axes of a frontier to ``path`` (png, svg or pdf), losses as colours.

    Panels: the metric's loss of every point; where points were measured, their drop. Squares have
    one candidate everywhere; crosses are worse than a point that is cheaper on each axis.
    """
    loss = f"{report.metric} loss [{report.metric_unit}]"
    panels = [(loss, [(p, p.loss) for p in (*report.points, *report.uniform)])]
    measured = [(p, p.drop) for p in (*report.evaluated, *report.uniform) if p.drop is not None]
    if measured:
        panels.append((f"{report.measure} against float, measured", measured))
    figure, places = plt.subplots(1, len(panels), figsize=(1 + 6 * len(panels), 5), squeeze=False)
    for place, (title, found) in zip(places[0], panels, strict=True):
        _draw(figure, place, report, found)
        place.set_title(title, fontsize=10, loc="left")
    figure.suptitle(
        f"{report.target}: {report.breakpoints} points of a grid of {' × '.join(report.axes)}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return Path(path)


def _draw(
    figure: Any, place: Any, report: FrontierReport, found: Sequence[tuple[Point, float]]
) -> None:
    first, second = list(report.axes)[:2]
    values = [value for _, value in found]
    low, high = min(values), max(values)
    norm = LogNorm if low > 0 and high > _LOGARITHMIC * low else Normalize
    scale = {"norm": norm(low, high), "cmap": "viridis_r"}
    for marker, label, chosen in (
        ("o", "frontier", lambda p: p.uniform is None),
        ("s", "uniform", lambda p: p.uniform is not None),
    ):
        rows = [(p.cost, p.costs[second], value) for p, value in found if chosen(p)]
        if rows:
            x, y, colours = zip(*rows, strict=True)
            drawn = place.scatter(x, y, c=colours, marker=marker, s=28, label=label, **scale)
    wrong = [p for p, _ in found if p.inverted]
    if wrong:
        spots = [p.cost for p in wrong], [p.costs[second] for p in wrong]
        place.scatter(*spots, marker="x", c="#c8321f", s=60, label="worse than a cheaper one")
    figure.colorbar(drawn, ax=place)
    place.set_xlabel(f"{first} [{report.axes[first]}]")
    place.set_ylabel(f"{second} [{report.axes[second]}]")
    place.legend(frameon=False, fontsize=8)
    place.grid(alpha=0.3)

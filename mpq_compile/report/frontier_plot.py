"""A static picture of a frontier: the metric's loss, what was measured, and uniform assignments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mpq_compile.report.frontier import FrontierReport, Point, near_float
from mpq_compile.report.frontier_map import save_frontier_map

_CURVE, _WRONG, _UNIFORM = "#2a5db0", "#c8321f", "0.45"
# A logarithmic axis is used where values differ by more than this factor.
_LOGARITHMIC = 20.0
# The straight line between uniform assignments bends on a logarithmic axis.
_STRAIGHT = 24
ValueOf = Callable[[Point], float | None]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """What one panel draws: a value of each point, and the float network's where there is one."""

    title: str
    value_of: ValueOf
    proven: bool = False
    float_value: float | None = None
    low: float | None = None


def save_frontier_picture(report: FrontierReport, path: str | Path) -> Path:
    """Draw a frontier to ``path`` (png, svg or pdf).

    Panels: the metric's loss at every breakpoint; what was measured on the task; where networks
    were timed, their latency. Uniform assignments are squares with a straight line between them.
    Several axes give a map.
    """
    if len(report.axes) > 1:
        return save_frontier_map(report, path)
    panels = _panels(report)
    figure, axes = plt.subplots(1, len(panels), figsize=(1 + 5.2 * len(panels), 4.8), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        _draw(axis, report, panel)
        axis.set_title(panel.title, fontsize=10, loc="left")
        axis.set_xlabel(f"{report.axis} [{report.unit}]")
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.suptitle(_heading(report), x=0.01, ha="left", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return Path(path)


def _panels(report: FrontierReport) -> list[_Panel]:
    title = f"{report.metric} loss [{report.metric_unit}]"
    panels = [_Panel(title=title, value_of=lambda point: point.loss, proven=True)]
    if any(point.score is not None for point in report.evaluated):
        panels.append(
            _Panel(
                title=f"{report.measure}, measured",
                value_of=lambda point: point.score,
                float_value=report.float_score,
            )
        )
        if (low := near_float(report)) is not None:
            panels.append(replace(panels[-1], title="the same, near float", low=low))
    elif report.evaluated:
        title = f"{report.measure} against float [{report.measure_unit}], measured"
        panels.append(_Panel(title=title, value_of=lambda point: point.drop))
    if any(point.measured for point in report.points):
        panels.append(_Panel(title="latency [ms], measured", value_of=_latency))
    return panels


def _latency(point: Point) -> float | None:
    return None if point.measured is None else point.measured.latency_ms


def _heading(report: FrontierReport) -> str:
    kind = "all" if report.complete else "some"
    inverted = sum(point.inverted for point in report.points)
    return (
        f"{report.target}: {kind} {report.breakpoints} breakpoints of {report.axis}, "
        f"{len(report.evaluated)} measured, {inverted} worse than a cheaper one"
    )


def _known(points: Sequence[Point], panel: _Panel) -> tuple[list[float], list[float]]:
    """Return costs and values of the points that have one."""
    rows = [(p.cost, v) for p in points if (v := panel.value_of(p)) is not None]
    return [cost for cost, _ in rows], [value for _, value in rows]


def _draw(axis: Any, report: FrontierReport, panel: _Panel) -> None:
    costs, values = _known(report.points, panel)
    if panel.proven:
        axis.plot(costs, values, color=_CURVE, lw=1.4, drawstyle="steps-post", label="frontier")
    else:
        axis.plot(costs, values, color=_CURVE, lw=1.0, alpha=0.6)
    _uniform(axis, report, panel)
    _marks(axis, report.evaluated, panel.value_of)
    if panel.float_value is not None:
        axis.axhline(panel.float_value, color="0.6", lw=0.8, ls=":")
        place = {"xycoords": ("axes fraction", "data"), "va": "bottom", "fontsize": 8}
        axis.annotate("float", (0.01, panel.float_value), color="0.4", **place)
    everything = values + _known(report.uniform, panel)[1]
    if min(everything) > 0 and max(everything) > _LOGARITHMIC * min(everything):
        axis.set_yscale("log")
    if panel.low is not None:
        axis.set_ylim(panel.low, max(everything) + 0.08 * (max(everything) - panel.low))
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _uniform(axis: Any, report: FrontierReport, panel: _Panel) -> None:
    costs, values = _known(report.uniform, panel)
    if not costs:
        return
    shares = np.linspace(0, len(costs) - 1, (len(costs) - 1) * _STRAIGHT + 1)
    line = [np.interp(shares, range(len(costs)), rows) for rows in (costs, values)]
    axis.plot(*line, color=_UNIFORM, lw=1, ls="--")
    axis.plot(costs, values, color=_UNIFORM, lw=1, ls="", marker="s", ms=4, label="uniform")
    named = [p for p in report.uniform if panel.value_of(p) is not None]
    # A loss falls and a score rises along the axis: names stand on the side that is free.
    place = {"xytext": (5, 4 if panel.proven else -10), "textcoords": "offset points"}
    for point, value in zip(named, values, strict=True):
        axis.annotate(
            point.uniform,
            (point.cost, value),
            fontsize=7,
            color="0.35",
            annotation_clip=True,
            **place,
        )


def _marks(axis: Any, points: Sequence[Point], value_of: ValueOf) -> None:
    """Dots on the measured points; those that a cheaper one beats are ringed."""
    for wrong, label in ((False, "measured"), (True, "worse than a cheaper one")):
        chosen = [p for p in points if p.inverted == wrong and value_of(p) is not None]
        if not chosen:
            continue
        axis.scatter(
            [p.cost for p in chosen],
            [value_of(p) for p in chosen],
            s=34 if wrong else 18,
            facecolors="none" if wrong else _CURVE,
            edgecolors=_WRONG if wrong else _CURVE,
            linewidths=1.6,
            zorder=3,
            label=label,
        )

"""A frontier to look into: one HTML file without network access, or a fragment of a larger page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from mpq_compile.report.frontier import FrontierReport, Point, near_float
from mpq_compile.types import Candidate

_TEMPLATE = Path(__file__).with_name("frontier.html")
_DATA = "/*DATA*/null"


def frontier_fragment(report: FrontierReport, chosen: Point | None = None, level: int = 2) -> str:
    """Return a ``<section>`` with its own style and script: several may stand on one page.

    Args:
        report: The frontier.
        chosen: A point to mark, which may lie beside the frontier.
        level: Of its heading.
    """
    text = _TEMPLATE.read_text(encoding="utf-8")
    text = text.replace("<h2 ", f"<h{level} ").replace("</h2>", f"</h{level}>")
    return text.replace(_DATA, _script_safe(page_data(report, chosen)))


def save_frontier_page(report: FrontierReport, path: str | Path) -> Path:
    """Write a page of its own."""
    title = escape(f"Frontier of {report.axis} on {report.target}")
    text = (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title></head>\n<body>\n{frontier_fragment(report)}</body>\n</html>\n"
    )
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def page_data(report: FrontierReport, chosen: Point | None = None) -> dict[str, Any]:
    """Return what the script draws; candidates are numbers into ``names``."""
    marked = () if chosen is None else (chosen,)
    points = (*report.points, *report.uniform, *marked)
    names = sorted({name for point in points for name in point.candidates}, key=_width)
    place = {name: i for i, name in enumerate(names)}
    return {
        "axis": report.axis,
        "unit": report.unit,
        "target": report.target,
        "metric": report.metric,
        "metricUnit": report.metric_unit,
        "measure": report.measure,
        "measureUnit": report.measure_unit,
        "floatScore": report.float_score,
        "nearFloat": near_float(report),
        "breakpoints": report.breakpoints,
        "complete": report.complete,
        "sites": list(report.sites),
        "names": names,
        "bits": [Candidate.parse(name).weight_bits for name in names],
        "points": [_point(point, place) for point in report.points],
        "uniform": [_point(point, place) for point in report.uniform],
        "chosen": None if chosen is None else _point(chosen, place),
        "notes": list(report.notes),
    }


def _width(name: str) -> tuple[int, int, str]:
    candidate = Candidate.parse(name)
    return candidate.weight_bits, candidate.activation_bits, name


def _point(point: Point, place: dict[str, int]) -> dict[str, Any]:
    timed = point.measured
    return {
        "cost": point.cost,
        "loss": point.loss,
        "chosen": [place[name] for name in point.candidates],
        "uniform": point.uniform,
        "drop": point.drop,
        "score": point.score,
        "inverted": point.inverted,
        "costs": dict(point.costs),
        "latency": None
        if timed is None
        else [timed.latency_ms, timed.latency_ms_lower95, timed.latency_ms_upper95],
    }


def _script_safe(data: dict[str, Any]) -> str:
    """Return JSON that no name in it can end the script with."""
    text = json.dumps(data, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

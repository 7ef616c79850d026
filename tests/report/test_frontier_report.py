"""Records, picture and page of a frontier."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mpq_compile.report.frontier import (
    FrontierReport,
    Measured,
    Point,
    beaten,
    concordance,
    inversions_among,
)
from mpq_compile.report.frontier_page import frontier_fragment, page_data, save_frontier_page
from mpq_compile.report.frontier_plot import save_frontier_picture

SITES = ("conv:conv2d#0", "</script><b>fc</b>:linear#0")


def points(*drops: float | None) -> list[Point]:
    """Return points by ascending cost whose loss falls."""
    return [
        Point(candidates=("w8a8", "w4a8"), cost=1.0 + i, loss=10.0 - i, drop=drop)
        for i, drop in enumerate(drops)
    ]


def report(
    drops: tuple[float | None, ...] = (4.0, None, 1.0, 2.0), **fields: Any
) -> FrontierReport:
    found = points(*drops)
    uniform = (
        Point(candidates=("w4a8", "w4a8"), cost=1.2, loss=9.9, uniform="w4a8", drop=3.0),
        Point(candidates=("w8a8", "w8a8"), cost=4.5, loss=7.0, uniform="w8a8", drop=0.5),
    )
    values: dict[str, Any] = {
        "axis": "size_mb",
        "unit": "MB",
        "target": "local",
        "metric": "sqnr",
        "metric_unit": "noise/signal",
        "measure": "kl",
        "measure_unit": "nats",
        "sites": SITES,
        "points": tuple(found),
        "breakpoints": len(found),
        "complete": True,
        "method": "states",
        "uniform": uniform,
        "tolerance": 0.0,
        "inversions": inversions_among(found),
        "concordance": concordance(found),
        "float_score": None,
        "budget": {},
        "notes": ["a note"],
        "provenance": {},
    }
    return FrontierReport(**{**values, **fields})


@pytest.mark.parametrize(
    ("drops", "pairs", "marks"),
    [
        ((3.0, 2.0, 1.0), (), [False, False, False]),
        ((3.0, 1.0, 2.0), ((1, 2),), [False, False, True]),
        ((3.0, None, 1.0, None, 2.0, 1.0), ((2, 4),), [False] * 4 + [True, False]),
        ((1.0, 2.0, 3.0), ((0, 1), (1, 2)), [False, True, True]),
        ((None, None), (), [False, False]),
    ],
)
def test_inversions(drops: tuple[float | None, ...], pairs: tuple, marks: list[bool]) -> None:
    found = points(*drops)
    assert inversions_among(found) == pairs
    assert beaten(found) == marks


def test_noise_inverts_nothing() -> None:
    found = points(3.0, 1.0, 1.4, 2.0)
    assert inversions_among(found, 0.5) == ((2, 3),)
    assert beaten(found, 0.5) == [False, False, False, True]


def test_concordance_is_kendalls_tau() -> None:
    from scipy.stats import kendalltau

    assert concordance(points(3.0, 2.0, 1.0)) == 1.0
    assert concordance(points(1.0, 2.0, 3.0)) == -1.0
    assert concordance(points(1.0)) is None
    drops = (5.0, 3.0, 3.0, 4.0, 0.0, 1.0)
    expected = kendalltau([10.0 - i for i in range(6)], drops).statistic
    assert concordance(points(*drops)) == pytest.approx(expected)


def test_a_report_gives_assignments_and_json() -> None:
    found = report()
    assert found.assignment(found.points[0]) == dict(zip(SITES, ("w8a8", "w4a8"), strict=True))
    assert [p.drop for p in found.evaluated] == [4.0, 1.0, 2.0]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["points"][0]["candidates"] == ["w8a8", "w4a8"]


class _Structure(HTMLParser):
    """Collects what a page loads and checks that its elements close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag not in ("meta", "circle", "path", "rect"):
            self.open.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attributes: list) -> None:
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    text = save_frontier_page(report(), tmp_path / "f.html").read_text(encoding="utf-8")
    parser = _Structure()
    parser.feed(text)
    assert parser.open == [] and parser.loaded == []
    assert "@import" not in text and "url(" not in text and "fetch(" not in text
    # Names of the user's modules cannot end the script.
    assert text.count("</script>") == 1
    stored = json.loads(re.search(r"const data = (\{.*\});\n", text).group(1))
    assert stored == page_data(report())
    assert stored["names"] == ["w4a8", "w8a8"] and stored["bits"] == [4, 8]
    assert stored["points"][0]["chosen"] == [1, 0]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to parse the script with")
def test_the_script_parses(tmp_path: Path) -> None:
    script = re.search(r"<script>(.*)</script>", frontier_fragment(report()), re.S).group(1)
    (tmp_path / "page.js").write_text(script, encoding="utf-8")
    done = subprocess.run(["node", "--check", tmp_path / "page.js"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "found",
    [
        report(),
        report((None,)),
        report((0.0, 0.0), uniform=()),
        report(
            points=(
                Point(
                    candidates=("w8a8", "w8a8"),
                    cost=1.0,
                    loss=1.0,
                    drop=-1.0,
                    score=91.0,
                    measured=Measured(
                        latency_ms=1.0, latency_ms_lower95=0.9, latency_ms_upper95=1.1
                    ),
                ),
            ),
            float_score=90.0,
        ),
    ],
    ids=["measured", "one point", "no uniform", "scores and latencies"],
)
def test_the_picture_is_drawn(found: FrontierReport, tmp_path: Path) -> None:
    from PIL import Image

    path = save_frontier_picture(found, tmp_path / "f.png")
    picture = Image.open(path).convert("L")
    assert picture.width > 700 and len(picture.getcolors()) > 20

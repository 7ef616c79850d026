"""The report in a browser: it fits a phone, and its tables, strips and switch do what they say."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from report_examples import evidence, large

from mpq_compile.report.evidence import Evidence
from mpq_compile.report.page import report_html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to show the report in"),
]

# The page stands in a frame as wide as a phone: a window cannot be made that narrow. What the
# steps find is written where --dump-dom shows it.
_FRAME = """<!doctype html><body style="margin:0">
<iframe id="phone" style="width:390px;height:800px;border:0" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("phone");
frame.addEventListener("load", () => {{
  const d = frame.contentDocument, w = frame.contentWindow, found = {{}};
  const errors = [];
  try {{ {steps} }} catch (error) {{ errors.push(String(error)); }}
  document.getElementById("found").textContent = JSON.stringify({{ ...found, errors }});
}});
</script>
"""
_STEPS = """
found.width = d.documentElement.scrollWidth;
found.outside = [...d.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, nav, .detail")
  && e.getBoundingClientRect().right > 391).map((e) => e.outerHTML.slice(0, 80));
const ink = () => w.getComputedStyle(d.body).color;
const theme = d.getElementById("theme"), first = ink();
found.named = theme.textContent;
theme.click();
found.switched = ink() !== first;
theme.click();
found.back = ink() === first;
const table = d.getElementById("table-sites"), names = () =>
  [...table.tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[0].textContent);
found.order = names();
const head = table.tHead.rows[0].cells[3];
head.querySelector("button").click();
found.sort = head.getAttribute("aria-sort");
found.sorted = [...table.tBodies[0].rows].map((r) => +r.cells[3].dataset.v);
const field = d.querySelector('input[data-filter="sites"]');
field.value = "W8A8 conv2d";
field.dispatchEvent(new w.Event("input"));
found.filtered = [...table.tBodies[0].rows].filter((r) => !r.hidden).length;
found.count = field.closest(".tools").querySelector(".count").textContent;
const strips = d.querySelector(".skyline");
strips.dispatchEvent(new w.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
found.readout = d.querySelector(".readout").textContent;
found.pointed = d.querySelectorAll("tr.pointed").length;
found.frontier = d.querySelectorAll(".mpq-frontier svg .curve").length;
found.chosen = d.querySelectorAll(".mpq-frontier figure .chosen").length;
found.detail = d.querySelector(".mpq-frontier .detail").textContent;
"""


@cache
def _text(large_network: bool) -> str:
    return report_html(_case(large_network))


def _case(large_network: bool) -> Evidence:
    return large(300) if large_network else evidence()


@pytest.fixture(scope="module", params=[False, True], ids=["three sites", "300 sites"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the steps found in the page, and the network it is of."""
    folder = tmp_path_factory.mktemp("browser")
    page = html.escape(_text(request.param), quote=True)
    (folder / "frame.html").write_text(_FRAME.format(page=page, steps=_STEPS), encoding="utf-8")
    done = _chromium(folder, "--dump-dom", f"file://{folder}/frame.html")
    text = re.search(r'<pre id="found">(.*?)</pre>', done, re.S)
    assert text is not None and text[1], done[-2000:]
    return json.loads(html.unescape(text[1])), _case(request.param)


def _chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    words += [
        "--virtual-time-budget=4000",
        f"--user-data-dir={folder}/profile",
        "--window-size=800,900",
    ]
    done = subprocess.run(
        [CHROMIUM, *words, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_script_runs(seen: Any) -> None:
    assert seen[0]["errors"] == []


def test_a_phone_needs_no_sideways_scrolling(seen: Any) -> None:
    found, _ = seen
    assert found["width"] == 390
    assert found["outside"] == []


def test_the_switch_changes_the_colours(seen: Any) -> None:
    found, _ = seen
    assert found["named"] in ("Dark", "Light")
    assert found["switched"] and found["back"]


def test_tables_are_sorted_and_filtered(seen: Any) -> None:
    found, case = seen
    assert found["order"] == list(case.plan.assignment)
    assert found["sort"] == "ascending" and found["sorted"] == sorted(found["sorted"])
    wide = [s for s, name in case.plan.assignment.items() if name == "w8a8" and "conv2d" in s]
    assert found["filtered"] == len(wide)
    assert found["count"] == f"{len(wide)} of {len(case.plan.assignment)} rows"


def test_strips_say_what_the_table_says(seen: Any) -> None:
    found, case = seen
    assert found["readout"].startswith(next(iter(case.plan.assignment)))
    assert found["pointed"] == 1


def test_the_frontier_shows_the_plan(seen: Any) -> None:
    found, case = seen
    assert found["frontier"] >= 1 and found["chosen"] == 1
    assert "this plan" in found["detail"]
    assert all(site in found["detail"] for site in case.plan.assignment)


def test_a_picture_is_taken(tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text(_text(False), encoding="utf-8")
    _chromium(tmp_path, f"--screenshot={tmp_path}/r.png", f"file://{tmp_path}/r.html")
    from PIL import Image

    picture = Image.open(tmp_path / "r.png").convert("L")
    assert picture.size == (800, 900) and len(picture.getcolors()) > 20

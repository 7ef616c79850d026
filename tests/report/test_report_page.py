"""The report: every number is there, nothing is loaded, nothing is believed to be markup."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from html_page import Page, read_page
from report_examples import HOSTILE, SITES, bare, evidence, large, plan, verification

import mpq_compile as mpq
from mpq_compile.report.card import card
from mpq_compile.report.evidence import Evidence
from mpq_compile.report.page import TEMPLATES, report_html
from mpq_compile.report.sections import SECTIONS

CASES = {
    "measured": evidence(),
    "plan alone": bare(),
    "assigned by hand": bare(plan=plan(table=[], loss=None, certificate={}, budget={})),
    "described target": evidence(timed=False),
    "no budget": evidence(plan=plan(budget={})),
    "forty sites": large(40),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Evidence:
    return CASES[request.param]


def page_of(found: Evidence) -> Page:
    return read_page(report_html(found))


def test_the_page_is_whole_and_loads_nothing(case: Evidence) -> None:
    text = report_html(case)
    page = read_page(text)
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"img", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp|import\(", text)
    # The name of a namespace is no address.
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}
    assert {section(case).id for section in SECTIONS} <= set(page.ids)
    assert page.tags.count("h1") == 1 and page.tags.count("main") == 1


def test_no_name_becomes_markup() -> None:
    page = page_of(evidence())
    assert not page.handlers
    assert "img" not in page.tags and "i" in page.tags and "b" not in page.tags
    for text in (HOSTILE, *SITES, "net <i>of</i> three", "a note <b>in bold</b>"):
        assert text in page.text
    assert report_html(evidence()).count("</script>") == page.tags.count("script")


def test_every_number_is_there() -> None:
    text = page_of(evidence()).text
    promised = ["≤ 0.6 ms", "≤ 100 kB"]
    predicted = ["0.523 ms", "0.498 ms to 0.548 ms", "123.5 MBOPs", "4.75 bits"]
    measured = ["0.531 ms", "0.527 ms to 0.541 ms", "76.54 kB", "0.577 ms", "0.611 ms", "54,321"]
    machine = ["3.4 %", "2.1 %", "1.1 %", "7.654 MB", "a-device-2c"]
    whole = ["0.701 ms", "0.611 ms to 0.791 ms", "0.822 ms", "+17.3 %", "outside the predicted"]
    origin = ["9.9.9", "cafe0123", "gptq", "7", "2030-01-02T03:04:05+00:00", "the compiler's note"]
    proof = ["0.0123 s", "Proven optimal", "about 0.025 less loss for one kB more"]
    kernels = [row.kernel for row in evidence().audit]
    traced = ["11.25 µs", "15.25 µs", "71.5 µs", "4,321", "75.0 %", "traced_4"]
    for number in (
        *promised,
        *predicted,
        *measured,
        *machine,
        *whole,
        *origin,
        *proof,
        *kernels,
        *traced,
    ):
        assert number in text, number
    for row in plan().table:
        if row["chosen"]:
            assert f"{row['loss']:.4g} ± 0.001" in text
            assert f"{row['latency_us']:.4g} µs" in text


def test_what_was_not_measured_is_said() -> None:
    text = page_of(bare()).text
    assert "this is a plan: nothing was built" in text
    assert "Accuracy on the task was not measured" in text
    assert "Nothing was built: what would run at each site is not known" in text
    assert "0.531" not in text and "Within budget" not in text
    by_hand = page_of(CASES["assigned by hand"]).text
    assert "The bits were given, not solved for" in by_hand
    assert "Size, time and loss of single sites were not measured" in by_hand
    described = page_of(evidence(timed=False)).text
    assert "no network runs on local here" in described and "0.531 ms" not in described


def test_kernels_that_were_not_traced_are_said() -> None:
    text = page_of(evidence(trace=None)).text
    assert "Kernels were not traced. `mpq trace`" in text
    assert "time, measured" not in text and "not measured one by one" in text
    assert "time, measured" in page_of(evidence()).text


def test_a_measured_drop_is_told() -> None:
    drop = {"measure": "top1", "unit": "%", "value": 0.25, "limit": 0.5, "measured": 9}
    certificate = {**plan().certificate, "drop": drop}
    found = evidence(plan=plan(certificate=certificate, budget={"max_drop": 0.5}))
    text = page_of(found).text
    assert "Measured on the task (top1): 0.25 % worse than float" in text
    assert "Drop against float" in text and "✓ kept" in text


def test_an_inconclusive_measurement_says_why() -> None:
    seen = verification(
        latency_ms_upper95=0.7, status="inconclusive", within_budget=False, reference_drift=0.42
    )
    text = page_of(evidence(verification=seen)).text
    assert "Inconclusive" in text
    assert "the reference workload was up to 42 % slower than usual" in text


def test_a_bound_that_was_not_proven_is_told() -> None:
    certificate = {"status": "feasible", "bound": 0.1, "gap": 0.02, "multipliers": {}}
    text = page_of(evidence(plan=plan(certificate=certificate, loss=0.125))).text
    assert "No assignment that the tables predict within the budget loses less than 0.1" in text
    assert "at most 0.025 could be gained (20.0 % of the loss" in text


def test_a_minimised_cost_is_not_called_a_loss() -> None:
    """The bound of its certificate is of bytes, and so are its multipliers."""
    certificate = {
        **plan().certificate,
        "objective": "size",
        "bound": 98765.0,
        "multipliers": {"loss": 3e4, "latency_us": 12.0},
    }
    text = page_of(bare(plan=plan(certificate=certificate))).text
    assert "Its size was minimised. Proven optimal" in text
    assert "98765" not in text and "9.877e+04" not in text and "less loss for one" not in text
    partly = {**certificate, "status": "feasible", "gap": 0.0625}
    assert "leaves a gap of 0.0625" in page_of(bare(plan=plan(certificate=partly))).text


def test_a_large_network_fits_a_page() -> None:
    text = report_html(large(300))
    assert len(text.encode()) < 500_000
    assert read_page(text).tags.count("tr") >= 600


def test_a_saved_report_has_its_title(tmp_path: Path) -> None:
    path = mpq.write_report(plan(), tmp_path / "r.html", title="my net")
    assert "<title>my net · mpq report</title>" in path.read_text(encoding="utf-8")
    with pytest.raises(mpq.ArtifactError, match="cannot be written"):
        mpq.write_report(plan(), tmp_path / "missing" / "r.html")


def test_cards_style_nothing_else() -> None:
    text = plan()._repr_html_()
    assert text == card(plan())
    page = read_page(text)
    assert page.references == [] and page.handlers == [] and "script" not in page.tags
    style = re.search(r"<style>(.*)</style>", text, re.S)
    assert style is not None
    selectors = [s for rule in re.findall(r"([^{}]+)\{", style[1]) for s in rule.split(",")]
    assert selectors and all(s.strip().startswith(".mpq-card") for s in selectors)
    assert "≤ 0.6 ms" in page.text and HOSTILE in page.text
    assert len(card(large(300).plan)) < 60_000


def test_texts_can_be_read_in_both_schemes() -> None:
    """WCAG's contrast of text: 4.5 to 1 on every ground that it stands on."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    colors = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", style))
    grounds = {name: ["back", "card", "well"] for name in ("ink", "soft", "accent")}
    grounds |= {name: ["card", f"{name}-back"] for name in ("good", "bad", "warn")}
    for name, places in grounds.items():
        for place in places:
            pairs = zip(colors[name].split(", "), colors[place].split(", "), strict=True)
            for text, ground in pairs:
                assert contrast(text, ground) >= 4.5, (name, place, text, ground)
    # Bars are pictures: 3 to 1.
    tints = re.findall(r"\.b\d+ \{ --tint: light-dark\((#\w{6}), (#\w{6})\)", style)
    assert len(tints) == 9
    for light, dark in tints:
        assert contrast(light, "#ffffff") >= 3 and contrast(dark, "#171c24") >= 3


def contrast(a: str, b: str) -> float:
    """Return WCAG's ratio of two colours."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_reports_need_neither_torch_nor_tvm() -> None:
    code = (
        "import sys; import mpq_compile.report.page, mpq_compile.report.card; "
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_section_is_one_function() -> None:
    """Sections have places and names of their own, and none fails on what is missing."""
    for found in CASES.values():
        sections = [section(found) for section in SECTIONS]
        assert len({s.id for s in sections}) == len({s.name for s in sections}) == len(SECTIONS)
    assert [s(replace(evidence(), history=None)) for s in SECTIONS]

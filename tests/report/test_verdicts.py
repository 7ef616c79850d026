"""Whether each bound of a budget is kept, by what was measured of it."""

from __future__ import annotations

from typing import Any

import pytest
from report_examples import bare, evidence, plan, verification

from mpq_compile.report.verdicts import verdict, verdicts, worst


@pytest.mark.parametrize(
    ("limit", "seen", "word"),
    [
        (0.6, {}, "kept"),
        (0.541, {}, "kept"),
        (0.535, {"status": "rejected"}, "missed"),
        (0.535, {"status": "inconclusive"}, "inconclusive"),
        (0.5, {"status": "inconclusive"}, "inconclusive"),
        (0.5, {"status": "rejected"}, "missed"),
    ],
    ids=["within", "at the upper end", "above it", "unsettled", "far above, unsettled", "far"],
)
def test_latency(limit: float, seen: dict[str, Any], word: str) -> None:
    found = verdict(evidence(verification=verification(**seen)), "latency_ms", limit)
    assert found.word == word
    assert found.measured is not None and found.measured.value == 0.531
    assert found.predicted is not None and found.predicted.upper == 0.548


@pytest.mark.parametrize(("limit", "word"), [(0.6, "kept"), (0.2, "missed")])
def test_a_busy_machine_is_told_whatever_the_verdict(limit: float, word: str) -> None:
    for calm in (True, False):
        seen = verification(status="accepted" if word == "kept" else "rejected", settled=calm)
        found = verdict(evidence(verification=seen), "latency_ms", limit)
        assert found.word == word
        assert ("the machine did not settle" in found.reason) == (not calm)


def test_the_95th_percentile_has_its_own_interval() -> None:
    assert verdict(evidence(), "latency_p95_ms", 0.59).word == "kept"
    assert verdict(evidence(), "latency_p95_ms", 0.58).word == "missed"


@pytest.mark.parametrize(
    ("name", "limit", "word"),
    [
        ("size_mb", 0.076543, "kept"),
        ("size_mb", 0.0765, "missed"),
        ("bops", 123_456_789.0, "kept"),
        ("avg_bits", 4.7, "missed"),
        ("peak_activation_mb", 0.002048, "kept"),
        ("max_loss", 10.0, "kept"),
        ("max_drop", 1.0, "not measured"),
        ("energy_mj", 1.0, "not measured"),
    ],
)
def test_what_is_counted(name: str, limit: float, word: str) -> None:
    assert verdict(evidence(), name, limit).word == word


def test_energy_is_measured_by_the_processor_alone() -> None:
    counted = verification(energy_mj=0.4, energy_source="rapl")
    assert verdict(evidence(verification=counted), "energy_mj", 0.5).word == "kept"
    assert verdict(evidence(verification=counted), "energy_mj", 0.3).word == "missed"
    by_profile = verification(energy_mj=0.4, energy_source="profile")
    found = verdict(evidence(verification=by_profile), "energy_mj", 0.5)
    assert (found.word, found.measured) == ("not measured", None)


def test_the_worst_bound_is_the_budgets() -> None:
    assert worst(verdicts(evidence())) == "kept"
    assert worst(verdicts(bare())) == "not measured"
    assert worst(verdicts(evidence(plan=plan(budget={})))) is None
    both = {"latency_ms": 0.1, "energy_mj": 1.0, "size_mb": 1.0}
    assert worst(verdicts(evidence(plan=plan(budget=both)))) == "missed"

"""`mpq report`, of an artifact and of a plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from verbs import Mpq

import mpq_compile as mpq_package
from mpq_compile.report.table_frontier import table_frontier
from mpq_compile.types import Plan


def test_of_an_artifact(mpq: Mpq, artifact: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = mpq("report", artifact, "-o", page, "--title", "two layers", "--json")
    assert result.code == 0
    assert result.json == {"report": str(page), "bytes": page.stat().st_size}
    text = page.read_text(encoding="utf-8")
    plan = json.loads((artifact / "plan.json").read_text(encoding="utf-8"))
    for site in plan["assignment"]:
        assert text.count(site) >= 2  # among the sites, and in the audit
    assert plan["provenance"]["kernels"] in text
    assert "two layers" in text and "bytes on disk" in text
    # An accelerator that is described by equations runs nothing.
    assert "no network runs on bit_serial here" in text


def test_of_a_plan(mpq: Mpq, plan_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = mpq("report", plan_file, "-o", page)
    assert result.code == 0 and str(page) in result.out
    text = page.read_text(encoding="utf-8")
    assert "Nothing was built" in text and "Frontier of" in text


def test_a_frontier_is_taken_in(mpq: Mpq, plan_file: Path, tmp_path: Path) -> None:
    plan = Plan.from_json(json.loads(plan_file.read_text(encoding="utf-8")))
    data = {**table_frontier(plan, "latency_ms").to_json(), "axis": "bops", "unit": "BOPs"}
    (tmp_path / "f.json").write_text(json.dumps(data), encoding="utf-8")
    page = tmp_path / "report.html"
    result = mpq("report", plan_file, "-o", page, "--frontier", tmp_path / "f.json")
    assert result.code == 0
    assert '"axis": "bops"' in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nothing.json"], "PlanError"),
        (["{plan}", "--frontier", "{plan}"], "PlanError"),
        (["{plan}", "-o", "no/such/folder/r.html"], "ArtifactError"),
        (["{folder}"], "ArtifactError"),
    ],
    ids=["no plan", "no frontier", "no folder", "no artifact"],
)
def test_refused(mpq: Mpq, plan_file: Path, tmp_path: Path, words: list[str], error: str) -> None:
    places = {"plan": str(plan_file), "folder": str(tmp_path)}
    result = mpq("report", *(word.format(**places) for word in words), "--json")
    assert (result.code, result.json["error"]) == (2, error)


def test_networks_report_without_torch(artifact: Path, tmp_path: Path) -> None:
    code = (
        "import sys, mpq_compile as mpq\n"
        f"net = mpq.load({str(artifact)!r})\n"
        f"net.report({str(tmp_path / 'r.html')!r})\n"
        "assert 'CompiledNetwork' in net._repr_html_()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"<h1>{artifact.name}</h1>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_package_offers_it(plan_file: Path, tmp_path: Path) -> None:
    plan = Plan.from_json(json.loads(plan_file.read_text(encoding="utf-8")))
    path = mpq_package.write_report(plan, tmp_path / "r.html")
    assert "Plan for bit_serial" in path.read_text(encoding="utf-8")

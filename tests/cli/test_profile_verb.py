"""`mpq profile`: measuring, and measurements that travel. The one file that times kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
from verbs import Mpq

NAMES = ("--candidates", "w8a8")


def test_measures_once_and_plans_from_it(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    first = mpq("profile", *job, *NAMES, "--json")
    assert first.code == 0
    assert first.json["complete"]
    again = mpq("profile", *job, *NAMES, "--json").json
    assert (again["new"], again["known"]) == (0, first.json["needed"])

    infeasible = mpq("plan", *job, *NAMES, "--latency-ms", "1e-9", "--json")
    assert infeasible.code == 1
    assert "ms, the cheapest assignment" in infeasible.json["message"]

    exported = mpq("profile", "export", tmp_path / "all.jsonl", "--json").json
    assert exported["measurements"] >= first.json["needed"]


def test_export_and_import(
    mpq: Mpq, job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpq("profile", *job, *NAMES)
    count = mpq("profile", "export", tmp_path / "all.jsonl", "--json").json["measurements"]
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "other.sqlite"))
    imported = mpq("profile", "import", tmp_path / "all.jsonl", "--json")
    assert (imported.code, imported.json["measurements"]) == (0, count)
    assert "0 measurements" in mpq("profile", "import", tmp_path / "all.jsonl").out


def test_time_runs_out(
    mpq: Mpq, job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "empty.sqlite"))
    result = mpq("profile", *job, *NAMES, "--budget-s", "1e-9", "--json")
    assert (result.code, result.json["complete"]) == (1, False)
    assert result.json["known"] is None


def test_no_tune_asks_for_no_time(
    mpq: Mpq, job: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQ_TUNE", "soon")
    refused = mpq("profile", *job, *NAMES, "--json")
    assert (refused.code != 0, refused.json["found"]) == (True, "'soon'")
    for verb in ("profile", "plan"):
        assert mpq(verb, *job, *NAMES, "--no-tune", "--json").code == 0


@pytest.mark.parametrize("value", ["0", "nan"])
def test_wrong_time(mpq: Mpq, job: tuple[str, ...], value: str) -> None:
    result = mpq("profile", *job, "--budget-s", value, "--json")
    assert (result.code, result.json["where"]) == (2, "--budget-s")


def test_an_analytic_target_needs_no_measuring(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("profile", *job, "--target", "bit_serial", "--json")
    assert (result.code, result.json["error"]) == (2, "ProfileError")


def test_missing_folder_of_the_database(
    mpq: Mpq, job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "none" / "db.sqlite"))
    for words in (["profile", *job], ["profile", "export", tmp_path / "all.jsonl"]):
        result = mpq(*words, "--json")
        assert (result.code, result.json["error"]) == (2, "ProfileError")
        assert "mkdir" in result.json["remedy"]


def test_what_is_no_export(mpq: Mpq, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text("\n{}\n", encoding="utf-8")
    result = mpq("profile", "import", tmp_path / "all.jsonl", "--json")
    assert result.code == 2
    assert result.json["where"].endswith("all.jsonl:2")

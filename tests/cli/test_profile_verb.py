"""`mpq profile`: measuring, and measurements that travel. The one file that times kernels."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from verbs import Mpq

from mpq_compile.cost.store import Store

NAMES = ("--candidates", "w8a8")


def test_measures_once_and_plans_from_it(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    first = mpq("profile", *job, *NAMES, "--json")
    assert first.code == 0
    assert first.json["complete"]
    again = mpq("profile", *job, *NAMES, "--json").json
    # What was taken while the machine was disturbed is measured again, here by chance.
    assert again["known"] + again["new"] == again["needed"] == first.json["needed"]

    before = mpq("profile", "list", "--json").json
    infeasible = mpq("plan", *job, *NAMES, "--latency-ms", "1e-9", "--json")
    assert infeasible.code == 1
    assert "ms, the cheapest assignment" in infeasible.json["message"]
    assert mpq("profile", "list", "--json").json == before

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


def test_a_sweep_needs_no_model(mpq: Mpq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "sweep.sqlite"))
    result = mpq("profile", "--sweep", "--candidates", "w4a8", "--budget-s", "1e-9", "--json")
    assert (result.code, result.json["complete"]) == (1, False)
    # The first kernels are built and measured whatever the time, the rest are left for another run.
    assert result.json["needed"] > 50 > result.json["new"]


def test_list_and_prune(
    mpq: Mpq, job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpq("profile", *job, *NAMES)
    mpq("profile", "export", tmp_path / "all.jsonl")
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "other.sqlite"))
    rows = (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()
    older = [json.dumps(json.loads(row) | {"kernels": "older"}) for row in rows]
    (tmp_path / "both.jsonl").write_text("\n".join([*rows, *older]), encoding="utf-8")
    assert mpq("profile", "import", tmp_path / "both.jsonl").code == 0

    listed = mpq("profile", "list", "--json").json["generations"]
    assert {(g["kernels"] == "older", g["current"]) for g in listed} == {
        (True, False),
        (False, True),
    }
    assert {g["measurements"] for g in listed} == {len(rows)}
    shown = mpq("profile", "list").out
    assert "stale" in shown and "current" in shown

    pruned = mpq("profile", "prune", "--stale", "--json").json
    assert [(g["kernels"], g["measurements"]) for g in pruned["deleted"]] == [("older", len(rows))]
    assert pruned["left"] == len(rows)
    again = mpq("profile", "prune", "--stale").out
    assert "nothing is stale" in again and "0 measurements deleted" in again


def test_a_damaged_database_is_a_note(
    mpq: Mpq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "damaged.sqlite"
    monkeypatch.setenv("MPQ_DB", str(path))
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    Store(path).close()
    damaged = path.read_bytes()[:100] + b"\xa5" * 5000
    for arguments in ([], ["--json"]):
        path.write_bytes(damaged)
        result = mpq("profile", "import", tmp_path / "none.jsonl", *arguments)
        assert result.code == 0
        assert result.err.startswith(f"note: {path}: the measurements database was damaged")
    assert [note.split(":")[0] for note in result.json["notes"]] == [str(path)]
    assert "notes" not in mpq("profile", "import", tmp_path / "none.jsonl", "--json").json


def test_import_of_a_file_that_is_missing(mpq: Mpq, tmp_path: Path) -> None:
    result = mpq("profile", "import", tmp_path / "none.jsonl", "--json")
    assert (result.code, result.json["message"]) == (2, "no such file")
    assert result.json["where"] == str(tmp_path / "none.jsonl")


def test_a_file_that_is_no_database_stays_as_it_is(
    place: Path, job: tuple[str, ...], mpq: Mpq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.py"
    text = (place / "net.py").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("MPQ_DB", str(path))
    result = mpq("profile", *job, *NAMES, "--json")
    assert (result.code, result.json["message"]) == (2, "not a measurements database")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.py"]
    assert path.read_text(encoding="utf-8") == text


def test_interrupted_and_continued(
    place: Path, job: tuple[str, ...], mpq: Mpq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "interrupted.sqlite"
    monkeypatch.setenv("MPQ_DB", str(database))
    command = [sys.executable, "-m", "mpq_compile", "profile", *job, *NAMES, "--no-tune", "--json"]
    profiler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not _samples(database):
        time.sleep(0.005)
    profiler.send_signal(signal.SIGINT)
    out, err = profiler.communicate(timeout=60)
    assert (profiler.returncode, json.loads(out)["error"]) == (130, "Interrupted"), err
    before = _samples(database)
    assert before > 0
    assert mpq("profile", *job, *NAMES, "--no-tune", "--json").json["complete"]
    assert _samples(database) >= before


def _samples(database: Path) -> int:
    if not database.exists():
        return 0
    with Store(database) as store:
        return sum(generation.samples for generation in store.generations())

"""`mpq doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest
from verbs import Mpq, Result

NAMES = ["python", "torch", "tvm", "tvm-ffi", "cpu", "amx", "threads"]
NAMES += ["compiler", "linker", "database"]


def status(result: Result) -> dict[str, str]:
    return {check["name"]: check["status"] for check in result.json["checks"]}


def test_a_sound_machine(mpq: Mpq) -> None:
    result = mpq("doctor", "--json")
    assert list(status(result)) == NAMES
    assert result.code == (0 if result.json["ok"] else 1)
    assert status(result)["linker"] == "ok"
    assert "compiler" in mpq("doctor").out


@pytest.mark.parametrize(
    ("variable", "value", "check"),
    [
        ("CXX", "no-such-compiler", "compiler"),
        ("CXX", "false", "linker"),
        ("MPQ_THREADS", "many", "threads"),
        ("MPQ_TIER", "vni", "cpu"),
        ("MPQ_DB", "/no/such/folder/db.sqlite", "database"),
        # Root may write there as far as permissions go, and yet nobody can.
        ("MPQ_DB", "/proc/db.sqlite", "database"),
    ],
)
def test_what_fails_is_named(
    mpq: Mpq, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, check: str
) -> None:
    monkeypatch.setenv(variable, value)
    result = mpq("doctor", "--json")
    assert result.code == 1
    assert status(result)[check] == "fail"


def test_a_damaged_database(mpq: Mpq, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "db.sqlite").write_bytes(b"not a database" * 100)
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "db.sqlite"))
    result = mpq("doctor", "--json")
    assert status(result)["database"] == "fail"


def test_another_version_of_the_ffi_fails(mpq: Mpq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mpq_compile.commands.doctor._PINS",
        {"torch": "1.0", "apache-tvm": "1.0", "apache-tvm-ffi": "1.0"},
    )
    found = status(mpq("doctor", "--json"))
    assert (found["torch"], found["tvm"], found["tvm-ffi"]) == ("warn", "warn", "fail")

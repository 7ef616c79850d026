"""`mpq targets`: list, show, validate."""

from __future__ import annotations

from pathlib import Path

import pytest
from verbs import Mpq

from mpq_compile.cost.profile import PROFILE_DIR, list_profiles


@pytest.mark.parametrize("verb", [(), ("list",)])
def test_list(mpq: Mpq, verb: tuple[str, ...]) -> None:
    result = mpq("targets", *verb, "--json")
    assert result.code == 0
    assert [row["name"] for row in result.json["targets"]] == list_profiles()
    assert result.json["local"] in list_profiles()
    assert "bit_serial" in mpq("targets", *verb).out


def test_show(mpq: Mpq) -> None:
    result = mpq("targets", "show", "bit_serial", "--json")
    assert result.code == 0
    assert result.json["kind"] == "analytic"
    assert "conv2d" in mpq("targets", "show", "local").out


def test_unknown_name_suggests_the_nearest(mpq: Mpq) -> None:
    result = mpq("targets", "show", "bit_serail", "--json")
    assert result.code == 2
    assert "'bit_serial'" in result.json["remedy"]


def test_validate(mpq: Mpq) -> None:
    result = mpq("targets", "validate", PROFILE_DIR / "bit_serial.yaml", "--json")
    assert (result.code, result.json["valid"]) == (0, True)


def test_malformed_yaml_names_the_line(mpq: Mpq, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nkind: [cpu\n", encoding="utf-8")
    result = mpq("targets", "validate", file, "--json")
    assert result.code == 1
    assert f"{file}:3" in result.json["problems"][0]["where"]
    assert f"{file}:3" in mpq("targets", "validate", file).out


def test_every_problem_of_a_file_is_listed(mpq: Mpq, tmp_path: Path) -> None:
    text = (PROFILE_DIR / "bit_serial.yaml").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("kind: analytic", "kind: abacus\ncolour: red"), encoding="utf-8")
    problems = mpq("targets", "validate", file, "--json").json["problems"]
    assert len(problems) >= 2


def test_validate_a_file_that_is_missing(mpq: Mpq, tmp_path: Path) -> None:
    assert mpq("targets", "validate", tmp_path / "none.yaml", "--json").code == 2

"""`mpq solve`: the problem in, the answer out, as the published schemas say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from verbs import Mpq

from mpq_compile.commands.reading import schema
from mpq_compile.registry import SOLVERS

KEYS = {"status", "assignment", "loss", "usage", "bound", "gap", "solver", "wall_s"}


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("solver", SOLVERS)
def test_solves(mpq: Mpq, tmp_path: Path, problem: dict[str, Any], solver: str) -> None:
    file = write(tmp_path / "problem.json", problem)
    answer = mpq("solve", file, "--solver", solver, "--json")
    assert answer.code == 0
    assert set(answer.json) >= KEYS
    assert answer.json["usage"]["size_bytes"] <= 12.0
    if answer.json["status"] == "optimal":
        assert answer.json["assignment"] == {"conv": "w8a8", "fc": "w4a8"}


def test_prints_a_table(mpq: Mpq, tmp_path: Path, problem: dict[str, Any]) -> None:
    answer = mpq("solve", write(tmp_path / "problem.json", problem))
    assert answer.code == 0
    assert "optimal by exact" in answer.out
    assert "w4a8" in answer.out


def test_check(mpq: Mpq, tmp_path: Path, problem: dict[str, Any]) -> None:
    file = write(tmp_path / "problem.json", problem)
    answer = mpq("solve", file, "--check", "--json")
    assert answer.code == 0
    assert answer.json["check"]["ok"] and answer.json["check"]["optimal"]
    assert answer.json["check"]["bound"] == pytest.approx(answer.json["loss"])
    assert "check: optimality verified" in mpq("solve", file, "--check").out
    # No proof of its own: the checker says what it could verify.
    tight = write(tmp_path / "tight.json", {**problem, "budget": {"size_bytes": 7.0}})
    assert "infeasibility verified" in mpq("solve", tight, "--check").out


def test_an_answer_is_checked_later(mpq: Mpq, tmp_path: Path, problem: dict[str, Any]) -> None:
    file = write(tmp_path / "problem.json", problem)
    answer = mpq("solve", file, "--json").json
    kept = write(tmp_path / "answer.json", answer)
    result = mpq("check", file, kept, "--json")
    assert (result.code, result.json["ok"], result.json["optimal"]) == (0, True, True)
    assert "optimality verified" in mpq("check", file, kept).out
    wrong = write(tmp_path / "wrong.json", {**answer, "loss": answer["loss"] * 0.9})
    result = mpq("check", file, wrong)
    assert result.code == 1 and "wrong: loss is" in result.out
    part = write(tmp_path / "part.json", {"status": "optimal"})
    result = mpq("check", file, part, "--json")
    assert (result.code, result.json["where"]) == (2, "solution")


def test_reads_standard_input(fresh: Mpq, problem: dict[str, Any]) -> None:
    answer = fresh("solve", "-", "--solver", "milp", "--json", stdin=json.dumps(problem))
    assert answer.code == 0
    assert answer.out.count("\n") == 1
    assert answer.json["status"] == "optimal"


def test_infeasible_exits_with_one(mpq: Mpq, tmp_path: Path, problem: dict[str, Any]) -> None:
    file = write(tmp_path / "problem.json", {**problem, "budget": {"size_bytes": 7.0}})
    answer = mpq("solve", file, "--json")
    assert answer.code == 1
    assert answer.json["status"] == "infeasible"
    assert answer.json["loss"] is None
    assert "8" in mpq("solve", file).out


def test_unknown_solver_suggests_the_nearest(
    mpq: Mpq, tmp_path: Path, problem: dict[str, Any]
) -> None:
    answer = mpq("solve", write(tmp_path / "p.json", problem), "--solver", "exakt", "--json")
    assert answer.code == 2
    assert "'exact'" in answer.json["remedy"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"groups": [],\n "budget": }', "p.json:2"),
        ("[" * 100_000, "p.json"),
        ("[]", "problem"),
        ('{"groups": []}', "budget"),
        ("", "p.json:1"),
    ],
)
def test_what_is_no_problem(mpq: Mpq, tmp_path: Path, text: str, found: str) -> None:
    answer = mpq("solve", write(tmp_path / "p.json", text), "--json")
    assert answer.code == 2
    assert answer.json["error"] == "PlanError"
    assert found in f"{answer.json['where']} {answer.json['message']}"


def test_missing_file(mpq: Mpq, tmp_path: Path) -> None:
    answer = mpq("solve", tmp_path / "none.json", "--json")
    assert (answer.code, answer.json["message"]) == (2, "no such file")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_time_limit_must_be_positive(
    mpq: Mpq, tmp_path: Path, problem: dict[str, Any], value: str
) -> None:
    answer = mpq("solve", write(tmp_path / "p.json", problem), "--time-limit-s", value, "--json")
    assert answer.code == 2
    assert answer.json["where"] == "--time-limit-s"


def accepted(problem: dict[str, Any]) -> bool:
    return Draft202012Validator(schema("problem")).is_valid(problem)


def test_the_schema_agrees_with_the_reader(problem: dict[str, Any]) -> None:
    from mpq_compile.solve.problem import Problem

    Draft202012Validator.check_schema(schema("problem"))
    pair = {"a": "conv", "b": "fc", "loss": [[0, 1], [None, 0]], "costs": {}}
    full = {**problem, "pairs": [pair]}
    assert accepted(problem)
    assert accepted(full)
    assert accepted(json.loads(json.dumps(Problem.from_json(full).to_json())))
    for broken in (
        {**problem, "extra": 1},
        {"groups": problem["groups"]},
        {**problem, "groups": []},
        {**problem, "budget": {"size_bytes": "12"}},
        {**problem, "pairs": [{**pair, "loss": [["1"]]}]},
    ):
        assert not accepted(broken)

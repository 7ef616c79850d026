"""`mpq plan` and `mpq explain`, on an analytic target: nothing is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from verbs import Mpq

from mpq_compile.commands.reading import read_plan, schema

ANALYTIC = ("--target", "bit_serial")


def test_plan(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    result = mpq("plan", *job, *ANALYTIC, "--size-mb", "0.0004", "-o", output, "--json")
    assert result.code == 0
    assert result.json["predicted"]["size_bytes"] <= 400
    assert result.json == json.loads(output.read_text(encoding="utf-8"))
    assert "the model speaks" in result.err
    Draft202012Validator.check_schema(schema("plan"))
    Draft202012Validator(schema("plan")).validate(result.json)


def test_the_proof_of_a_plan_is_checked(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    assert mpq("plan", *job, *ANALYTIC, "--size-mb", "0.0004", "-o", output).code == 0
    result = mpq("check", output, "--json")
    assert (result.code, result.json["ok"], result.json["optimal"]) == (0, True, True)
    data = json.loads(output.read_text(encoding="utf-8"))
    output.write_text(json.dumps({**data, "loss": data["loss"] / 2}), encoding="utf-8")
    result = mpq("check", output)
    assert result.code == 1 and result.out.startswith("wrong: ")


def test_a_minimised_cost_is_named(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--max-loss", "0.1", "--minimize", "size")
    assert result.code == 0
    assert "optimal by exact, of the least size, gap 0" in result.out


def test_plan_without_json(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--candidates", "w8a8")
    assert result.code == 0
    assert "2 × w8a8" in result.out


def test_constraints_and_drop(mpq: Mpq, job: tuple[str, ...]) -> None:
    options = ("--constraint", "fc=w8a8", "--max-drop", "100", "--minimize", "size")
    result = mpq("plan", *job, *ANALYTIC, *options, "--json")
    assert result.code == 0
    names = {site.partition(":")[0]: name for site, name in result.json["assignment"].items()}
    assert names["fc"] == "w8a8"
    assert names["conv"] != "w8a8"


@pytest.mark.parametrize("name", ["affine", "none"])
def test_a_plan_records_its_correction(mpq: Mpq, job: tuple[str, ...], name: str) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--correction", name, "--json")
    assert result.code == 0
    assert result.json["provenance"]["correction"] == name


def test_exported_program(mpq: Mpq, place: Path, job: tuple[str, ...], tmp_path: Path) -> None:
    import torch

    from mpq_compile.commands.model import read_model

    model, _ = read_model(job[0])
    program = torch.export.export(model.eval(), (torch.zeros(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    result = mpq("plan", tmp_path / "net.pt2", *job[1:], *ANALYTIC, "--json")
    assert result.code == 0
    assert len(result.json["assignment"]) == 2


def test_an_infeasible_percentile_is_named(mpq: Mpq, job: tuple[str, ...]) -> None:
    options = ("--target", "bit_serial", "--latency-p95-ms", "1e-6", "--latency-ms", "1", "--json")
    result = mpq("plan", *job, *options)
    assert result.code == 1
    assert "latency_p95_ms budget 1e-06 ms, over 1.15 (95th percentile" in result.json["message"]


def test_infeasible_says_what_is_attainable(mpq: Mpq, job: tuple[str, ...]) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--size-mb", "0.00001", "--json")
    assert result.code == 1
    assert result.json["error"] == "InfeasibleBudgetError"
    assert "MB, the cheapest assignment" in result.json["message"]


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        (("--target", "bit_serail"), "'bit_serial'"),
        ((*ANALYTIC, "--metric", "sqrn"), "'sqnr'"),
        ((*ANALYTIC, "--solver", "greedi"), "'greedy'"),
        ((*ANALYTIC, "--correction", "afine"), "'affine'"),
        ((*ANALYTIC, "--constraint", "con=w8a8"), "'conv'"),
        ((*ANALYTIC, "--max-drop", "1", "--minimize", "sise"), "'size'"),
    ],
)
def test_wrong_names_suggest_the_nearest(
    mpq: Mpq, job: tuple[str, ...], options: tuple[str, ...], nearest: str
) -> None:
    result = mpq("plan", *job, *options, "--json")
    assert result.code == 2
    assert nearest in result.json["remedy"]


@pytest.mark.parametrize("value", ["0", "-2", "nan", "inf"])
def test_wrong_budgets(mpq: Mpq, job: tuple[str, ...], value: str) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--latency-ms", value, "--json")
    assert (result.code, result.json["where"]) == (2, "--latency-ms")


def test_malformed_target_names_the_line(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nkind: [cpu\n", encoding="utf-8")
    result = mpq("plan", *job, "--target", tmp_path / "mine.yaml", "--json")
    assert result.code == 2
    assert result.json["where"].endswith("mine.yaml:3")


@pytest.mark.parametrize(
    ("dtype", "shape", "error"),
    [
        ("float32", (4, 5, 8, 8), "CaptureError"),
        ("float64", (4, 3, 8, 8), "CalibrationError"),
    ],
)
def test_wrong_data(
    mpq: Mpq, place: Path, tmp_path: Path, dtype: str, shape: tuple[int, ...], error: str
) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(shape, dtype))
    result = mpq("plan", f"{place}/net.py:make", "--data", tmp_path / "x.npz", *ANALYTIC, "--json")
    assert (result.code, result.json["error"]) == (2, error)


def test_output_is_checked_before_the_work(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    result = mpq("plan", *job, *ANALYTIC, "-o", tmp_path / "none" / "plan.json", "--json")
    assert result.code == 2
    assert "the model speaks" not in result.err


def test_explain(mpq: Mpq, plan_file: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    result = mpq("explain", plan_file, "--png", picture)
    assert result.code == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    for word in ("conv:conv2d#0", "w4a8", "latency", "optimal by exact"):
        assert word in result.out
    data = mpq("explain", plan_file, "--json").json
    assert data["plan"] == json.loads(plan_file.read_text(encoding="utf-8"))


def test_explain_a_plan_without_losses(mpq: Mpq, plan_file: Path, tmp_path: Path) -> None:
    data = json.loads(plan_file.read_text(encoding="utf-8"))
    data.update(loss=None, certificate={}, table=[])
    (tmp_path / "plan.json").write_text(json.dumps(data), encoding="utf-8")
    assert read_plan(tmp_path / "plan.json").loss is None
    assert mpq("explain", tmp_path / "plan.json").code == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', "nothing"])
def test_what_is_no_plan(mpq: Mpq, tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    result = mpq("explain", tmp_path / "plan.json", "--json")
    assert (result.code, result.json["error"]) == (2, "PlanError")

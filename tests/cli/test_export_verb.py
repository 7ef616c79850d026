"""`mpq export` to ONNX and encodings; `--native` is tested with the artifact's verbs."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from jsonschema import Draft202012Validator
from verbs import Mpq

from mpq_compile.commands.reading import schema


def test_onnx_and_encodings_of_a_plan(
    mpq: Mpq, job: tuple[str, ...], plan_file: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / "net.onnx", tmp_path / "enc.json"]
    forms = ("--onnx", paths[0], "--encodings", paths[1])
    result = mpq("export", *job, "--plan", plan_file, *forms, "--json")
    assert result.code == 0, result.err
    files = {str(path): path.stat().st_size for path in sorted(tmp_path.iterdir())}
    assert result.json["files"] == files and len(files) == 3
    kinds = {node.op_type for node in onnx.load(paths[0]).graph.node}
    assert kinds >= {"QuantizeLinear", "DequantizeLinear", "Conv"}
    encodings = json.loads(paths[1].read_text(encoding="utf-8"))
    Draft202012Validator(schema("encodings")).validate(encodings)
    assigned = json.loads(plan_file.read_text(encoding="utf-8"))["assignment"]
    assert {e["name"]: e["candidate"] for e in encodings["param_encodings"]} == assigned


def test_integers_as_deployed(
    mpq: Mpq, job: tuple[str, ...], plan_file: Path, tmp_path: Path
) -> None:
    words = ("--plan", plan_file, "--onnx", tmp_path / "net.onnx", "--exact", "--json")
    done = mpq("export", *job, *words)
    # Everything has an exact form: there is nothing to say.
    assert (done.code, done.json["notes"]) == (0, [])
    kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    assert "ConvInteger" in kinds and "Conv" not in kinds
    refused = mpq("export", *job, *words, "--biases", "int32")
    assert (refused.code, refused.json["where"]) == (2, "exact")
    alone = mpq(
        "export", *job, "--plan", plan_file, "--encodings", tmp_path / "e", "--exact", "--json"
    )
    assert (alone.code, alone.json["where"]) == (2, "--exact")


def test_an_artifact_does_for_the_plan(
    mpq: Mpq, job: tuple[str, ...], plan_file: Path, artifact: Path, tmp_path: Path
) -> None:
    for name, plan in (("a.onnx", plan_file), ("b.onnx", artifact)):
        assert mpq("export", *job, "--plan", plan, "--onnx", tmp_path / name).code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_forms_of_two_sources_are_refused_before_anything_is_written(
    mpq: Mpq, artifact: Path, tmp_path: Path
) -> None:
    forms = ("--native", tmp_path / "native", "--onnx", tmp_path / "net.onnx")
    result = mpq("export", artifact, *forms, "--json")
    assert (result.code, result.json["found"]) == (2, "both")
    assert not any(tmp_path.iterdir())


def test_an_artifact_alone_holds_no_graph(mpq: Mpq, artifact: Path, tmp_path: Path) -> None:
    result = mpq("export", artifact, "--onnx", tmp_path / "net.onnx", "--json")
    assert (result.code, result.json["error"]) == (2, "PlanError")
    assert f"--plan {artifact}" in result.json["remedy"]


@pytest.mark.parametrize(
    ("options", "where"),
    [((), "mpq export"), (("--onnx", "/nowhere/net.onnx"), "/nowhere/net.onnx")],
)
def test_what_is_missing_is_said(
    mpq: Mpq, job: tuple[str, ...], plan_file: Path, options: tuple[str, ...], where: str
) -> None:
    result = mpq("export", *job, "--plan", plan_file, *options, "--json")
    assert (result.code, result.json["where"]) == (2, where)

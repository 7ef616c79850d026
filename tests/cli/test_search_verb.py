"""`mpq search`: from small data to a policy, and from a policy to a plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from verbs import Mpq

from mpq_compile.commands.reading import read_policy, schema

ANALYTIC = ("--target", "bit_serial")
# MACs of the small model: 8 · 27 · 64 of the convolution, 32 of the linear; 8 · 8 bits for both.
FULL = (8 * 27 * 64 + 32) * 64


@pytest.fixture
def labelled(place: Path, tmp_path: Path) -> tuple[str, ...]:
    generator = np.random.default_rng(1)
    images = generator.standard_normal((64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images, labels=generator.integers(0, 4, 64))
    return (f"{place}/net.py:make", "--data", f"{tmp_path}/data.npz")


def test_search_then_plan(
    mpq: Mpq, labelled: tuple[str, ...], job: tuple[str, ...], tmp_path: Path
) -> None:
    path, kept = tmp_path / "policy.json", tmp_path / "search.safetensors"
    result = mpq(
        *("search", *labelled, *ANALYTIC, "--bops", FULL / 2, "--candidates", "w8a8,w4a8,w2a8"),
        *("--epochs", 1, "--checkpoint", kept, "-o", path, "--json"),
    )
    assert result.code == 0
    assert result.json == json.loads(path.read_text(encoding="utf-8"))
    assert result.json["bops"] <= FULL / 2
    Draft202012Validator.check_schema(schema("policy"))
    Draft202012Validator(schema("policy")).validate(result.json)
    assert kept.is_file()
    assert read_policy(path).to_json() == result.json
    planned = mpq("plan", *job, *ANALYTIC, "--policy", path, "--json")
    assert planned.code == 0
    assert planned.json["assignment"] == result.json["assignment"]
    assert "asga found on 64 samples" in planned.json["notes"][-1]


def test_search_without_json(mpq: Mpq, labelled: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    options = ("--bops", FULL, "--method", "plain", "--epochs", 1, "-o", path)
    result = mpq("search", *labelled, *ANALYTIC, *options)
    assert result.code == 0
    assert "mpq plan --policy" in result.out


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (("--bops", "1"), "InfeasibleBudgetError", "the cheapest assignment"),
        ((), "PlanError", "what bits may cost"),
        (("--bops", "1e9", "--method", "plane"), "MpqError", "unknown search"),
        (("--bops", "1e9", "-o", "none/policy.json"), "PlanError", "cannot be written"),
    ],
)
def test_searches_that_cannot_be(
    mpq: Mpq,
    labelled: tuple[str, ...],
    tmp_path: Path,
    options: tuple[str, ...],
    error: str,
    words: str,
) -> None:
    output = () if "-o" in options else ("-o", tmp_path / "policy.json")
    result = mpq("search", *labelled, *ANALYTIC, *options, *output, "--json")
    assert result.code == (1 if error == "InfeasibleBudgetError" else 2)
    assert result.json["error"] == error
    assert words in result.json["message"]


def test_few_samples_are_refused(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--bops", FULL, "-o", tmp_path / "policy.json", "--json")
    result = mpq("search", *job, *ANALYTIC, *options)
    assert (result.code, result.json["error"]) == (2, "CalibrationError")
    assert result.json["expected"] == "at least 64 samples"


def test_what_is_no_policy(mpq: Mpq, job: tuple[str, ...], plan_file: Path, tmp_path: Path) -> None:
    result = mpq("plan", *job, *ANALYTIC, "--policy", plan_file, "--json")
    assert (result.code, result.json["error"]) == (2, "PlanError")
    assert "mpq search" in result.json["remedy"]

"""`mpq finetune`: from a plan to an artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
from verbs import Mpq


def test_finetune(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    plan, folder = tmp_path / "plan.json", tmp_path / "artifact"
    planned = mpq("plan", *job, "--candidates", "w4a8", "-o", plan, "--json")
    assert planned.code == 0
    kept = tmp_path / "run.safetensors"
    result = mpq(
        *("finetune", *job, "--plan", plan, "-o", folder, "--epochs", "1", "--no-verify"),
        *("--checkpoint", kept, "--json"),
    )
    assert result.code == 0
    assert "fine-tun" in result.json["plan"]["notes"][-1]
    assert kept.is_file() and (folder / "manifest.json").is_file()
    assert mpq("run", folder, *job[1:]).code == 0


def test_a_loss_that_is_not_known(mpq: Mpq, job: tuple[str, ...], tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    mpq("plan", *job, "--target", "bit_serial", "-o", plan)
    result = mpq(
        *("finetune", *job, "--plan", plan, "-o", tmp_path / "a", "--loss", "lables", "--json")
    )
    assert result.code == 2
    assert "'labels'" in result.json["remedy"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--epochs", "0"), ("--batch-size", "0"), ("--rate", "0"), ("--rate", "nan")],
)
def test_numbers_that_are_not_positive(
    mpq: Mpq, job: tuple[str, ...], plan_file: Path, tmp_path: Path, option: str, value: str
) -> None:
    result = mpq("finetune", *job, "--plan", plan_file, "-o", tmp_path / "a", option, value)
    assert result.code == 2
    assert option.removeprefix("--") in result.err

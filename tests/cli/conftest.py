"""What the tests of the command line share: a small model, its data, and a way to run verbs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from verbs import Mpq, Result

from mpq_compile import cli

ROOT = Path(__file__).resolve().parents[2]
MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        print("the model speaks")
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def make():
    torch.manual_seed(0)
    return Net()


def make_with_inputs():
    return make(), torch.zeros(2, 3, 8, 8)


def make_text():
    return "no model"


def make_trouble():
    raise RuntimeError("the weights are missing")
"""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, its data and a database that the tests share."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "net.py").write_text(MODEL, encoding="utf-8")
    generator = np.random.default_rng(0)
    images = generator.standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=images, labels=generator.integers(0, 4, 16))
    return folder


def _environment(folder: Path) -> dict[str, str]:
    return {
        "MPQ_DB": str(folder / "measurements.sqlite"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MPQ_PROGRESS": "0",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(autouse=True)
def environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's cache, database and settings."""
    for name, value in _environment(place).items():
        monkeypatch.setenv(name, value)
    for name in ("MPQ_TIER", "MPQ_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mpq(capfd: pytest.CaptureFixture[str]) -> Mpq:
    """Run a verb in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = cli.execute([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def fresh(place: Path) -> Mpq:
    """Run a verb, or Python code with ``-c``, in a fresh process."""

    def run(*arguments: object, stdin: str | None = None) -> Result:
        words = [str(argument) for argument in arguments]
        command = words if words[0] == "-c" else ["-m", "mpq_compile", *words]
        done = subprocess.run(
            [sys.executable, *command],
            input=stdin,
            capture_output=True,
            text=True,
            env=os.environ | _environment(place),
            cwd=place,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def job(place: Path) -> tuple[str, ...]:
    """The model and its data, as arguments."""
    return (f"{place}/net.py:make", "--data", f"{place}/data.npz")


@pytest.fixture(scope="session")
def plan_file(place: Path) -> Path:
    """A plan for an analytic target: nothing is measured for it."""
    path = place / "plan.json"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _environment(place).items():
            patch.setenv(name, value)
        words = [f"{place}/net.py:make", "--data", f"{place}/data.npz", "--target", "bit_serial"]
        assert cli.execute(["plan", *words, "--size-mb", "0.0004", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def artifact(place: Path, plan_file: Path) -> Path:
    """The artifact of that plan, built for this machine. Tests do not change it."""
    folder = place / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _environment(place).items():
            patch.setenv(name, value)
        words = [f"{place}/net.py:make", "--data", f"{place}/data.npz", "--plan", str(plan_file)]
        assert cli.execute(["compile", *words, "-o", str(folder)]) == 0
    return folder


@pytest.fixture
def problem() -> dict[str, Any]:
    """Two groups, of which the budget lets one have eight bits."""

    def group(name: str, losses: tuple[float, float]) -> dict[str, Any]:
        costs = [{"size_bytes": 8.0}, {"size_bytes": 4.0}]
        names = ("w8a8", "w4a8")
        rows = zip(names, losses, costs, strict=True)
        return {
            "name": name,
            "candidates": [{"name": n, "loss": loss, "costs": c} for n, loss, c in rows],
        }

    return {
        "groups": [group("conv", (0.5, 5.0)), group("fc", (0.5, 1.0))],
        "budget": {"size_bytes": 12.0},
    }

"""`examples/black_box`: each checks itself against the exact optimum, and draws."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "black_box"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


def test_there_are_four() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_finds_the_optimum_and_draws(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    matplotlib.use("Agg")
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [name, "--plot", str(picture)])
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert "gcpso" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")

"""`examples/decoder`: compiles to two widths and generates as many tokens as it is asked for."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "decoder"


def test_example_generates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["generate.py", "--tokens", "6"])
    script = runpy.run_path(str(FOLDER / "generate.py"), run_name="example")
    decoder = sys.modules.pop("decoder")
    # The same network with fewer weights: a test need not wait for eight million.
    monkeypatch.setattr(decoder, "LAYERS", 1)
    monkeypatch.setattr(decoder, "WIDTH", 128)
    script["main"]()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == ["w8a16", "w4a16g64"]
    assert all(len(line.split()) == 7 for line in lines[1::2])  # six tokens and an ellipsis

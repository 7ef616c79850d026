"""The page on black boxes: its code runs as written, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "black_box.md").read_text(encoding="utf-8")


def test_the_code_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    assert len(blocks) == PAGE.count("\n```") // 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/black_box.md", "exec"), names)
    assert "network's own loss" in capsys.readouterr().out


def test_the_examples_are_those_of_the_folder() -> None:
    named = set(re.findall(r"^- `(\w+\.py)`:", PAGE, re.M))
    assert named == {path.name for path in (ROOT / "examples" / "black_box").glob("*.py")}

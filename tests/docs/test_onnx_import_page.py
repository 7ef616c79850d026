"""The page on ONNX: the code of its import section runs as written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
IMPORT = PAGE.partition("## Import")[2].partition("\n## ")[0]


def test_the_code_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", IMPORT, re.S | re.M)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/onnx.md", "exec"), names)
    assert "'0:conv2d#0'" in capsys.readouterr().out


def test_the_opset_is_the_one_named() -> None:
    from mpq_compile.onnx_import.source import OPSET

    assert f"opset {OPSET}" in IMPORT

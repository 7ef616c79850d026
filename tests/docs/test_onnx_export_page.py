"""The page on ONNX export: its Python runs as written, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
# Up to the next heading of its rank.
EXPORT = re.split(r"^## ", PAGE.partition("\n## Export\n")[2], flags=re.M)[0]


def test_the_code_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", EXPORT, re.S | re.M)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/onnx.md", "exec"), names)

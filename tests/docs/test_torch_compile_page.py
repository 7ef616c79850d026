"""The page on ``torch.compile``: its code runs as written, block after block."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import mpq_compile.integrations.torch_backend  # noqa: F401 - the tree may not be installed
from mpq_compile.integrations.backend_options import BackendOptions

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "torch_compile.md").read_text("utf-8")


def test_the_code_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    assert len(blocks) == PAGE.count("\n```") // 2
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, "docs/torch_compile.md", "exec"), names)
    assert "part 0: compiled" in capsys.readouterr().out


def test_every_option_is_named() -> None:
    listed = PAGE.partition("## Options")[2]
    missing = [f.name for f in fields(BackendOptions) if f"`{f.name}`" not in listed]
    assert missing == ["recipe"]

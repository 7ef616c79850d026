"""The README's example is one that runs, and its commands are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_block_holds_demo_and_test() -> None:
    """A new user sees the two commands first, and the Makefile knows them."""
    block = re.search(r"```\n(.*?)```", README, re.S)
    assert block is not None
    commands = [line.split("#")[0].strip() for line in block.group(1).splitlines()]
    assert commands == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{command.split()[1]}:" in makefile for command in commands)


def test_the_example_is_the_quick_start_s() -> None:
    """That page explains it piece by piece, and ``tests/docs/test_pages.py`` runs the page."""
    block = re.search(r"```python\n(.*?)```", README, re.S)
    page = (ROOT / "docs" / "quick_start.md").read_text(encoding="utf-8")
    pieces = re.findall(r"```python\n(.*?)```", page, re.S)
    assert block is not None
    assert "".join(pieces).split() == block.group(1).split()

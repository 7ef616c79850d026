"""The README's example runs as written, and its commands are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


def test_the_example_runs_as_written(tmp_path: Path) -> None:
    """In a fresh process and an empty folder; its own assertion compares device and oracle."""
    block = re.search(r"```python\n(.*?)```", README, re.S)
    assert block is not None
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MPQ_DB": str(tmp_path / "measurements.sqlite"),
    }
    done = subprocess.run(
        [sys.executable, "-c", block.group(1)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits_net" / "manifest.json").is_file()

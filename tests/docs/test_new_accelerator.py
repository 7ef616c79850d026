"""The page on new accelerators: its files are the example's, and its commands do what it says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpq_compile import cli

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "accelerator"
PAGE = (ROOT / "docs" / "new-accelerator.md").read_text(encoding="utf-8")
# A block of code, with the name of the file where the line before gives one.
BLOCK = re.compile(
    r"(?:^`(?P<file>[\w.]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.S | re.M
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a reader does next: write a file, or run commands that print ``shown``."""

    file: str | None
    text: str
    shown: str = ""


def steps() -> list[Step]:
    """Return the page's blocks in order; a text block is what the commands before it print."""
    found: list[Step] = []
    for block in BLOCK.finditer(PAGE):
        if block["kind"] == "text":
            last = found.pop()
            assert last.file is None and not last.shown, "output of no command"
            found.append(Step(file=None, text=last.text, shown=block["text"]))
        else:
            assert (block["kind"] == "sh") == (block["file"] is None), block[0]
            found.append(Step(file=block["file"], text=block["text"]))
    return found


STEPS = steps()
FILES = {step.file: step.text for step in STEPS if step.file is not None}


def test_every_block_is_a_step() -> None:
    assert PAGE.count("\n```") == 2 * len(list(BLOCK.finditer(PAGE)))


def test_the_files_are_those_of_the_example() -> None:
    assert {p.name: p.read_text(encoding="utf-8") for p in EXAMPLE.glob("*.*")} == FILES


Run = Callable[[str], str]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a command in the reader's folder and return what it prints.

    Commands run in this process: a fresh one would import torch for each of them.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "measurements.sqlite"))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("net", None)

    def done(line: str) -> str:
        program, *words = shlex.split(line)
        capfd.readouterr()
        if program == "mpq":
            code = cli.execute(words)
        else:
            assert program == "python" and len(words) == 1
            runpy.run_path(words[0], run_name="__main__")
            code = 0
        printed = capfd.readouterr()
        assert code == 0, f"{line}\n{printed.out}\n{printed.err}"
        return printed.out

    yield done
    sys.modules.pop("net", None)


def test_a_reader_gets_from_nothing_to_a_plan(tmp_path: Path, run: Run) -> None:
    """Do in order what the page says, in an empty folder."""
    for step in STEPS:
        if step.file is not None:
            Path(step.file).write_text(step.text, encoding="utf-8")
            continue
        printed = "".join(map(run, step.text.splitlines())).splitlines()
        assert [line for line in step.shown.splitlines() if line not in printed] == []
    assert Path("plan.json").is_file() and Path("artifact/manifest.json").is_file()

"""Every page's code runs as written: Python in one namespace, commands in the reader's folder."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from pages import PAGES, ROOT, Block, blocks, read

import mpq_compile.integrations.torch_backend  # noqa: F401 - the tree may not be installed
from mpq_compile import cli

# What pages take for granted: a model and data under the names that all of them use.
NET = """import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    ).eval()
"""
TO_RUN = [page for page in PAGES if any(block.runs for block in blocks(page))]
Run = Callable[[list[str]], str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder; what a page imports from it is forgotten afterwards."""
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    images = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{tmp_path}/"):
            del sys.modules[name]


@pytest.fixture
def run(place: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command and returns what it prints; in this process, which has torch already."""

    def done(words: list[str]) -> str:
        capfd.readouterr()
        program, *rest = words
        code = 0
        if program == "mpq":
            code = cli.execute(rest)
        else:
            assert program == "python" and len(rest) == 1, f"who runs {words}?"
            runpy.run_path(rest[0], run_name="__main__")
        printed = capfd.readouterr()
        assert code == 0, f"{words}\n{printed.out}\n{printed.err}"
        return printed.out

    return done


@pytest.mark.parametrize("page", TO_RUN)
def test_a_page_runs_as_written(page: str, place: Path, run: Run) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.requires:
            pytest.importorskip(block.requires, reason=f"{block.requires} is not installed")
        if block.file is not None:
            (place / block.file).write_text(block.text, encoding="utf-8")
        elif block.runs and block.kind == "python":
            # Lines are counted as in the page, for tracebacks.
            code = "\n" * (block.line - 1) + block.text
            exec(compile(code, f"docs/{page}", "exec"), names)
        elif block.runs:
            printed = "".join(map(run, block.commands)).splitlines()
            assert [line for line in block.shown.splitlines() if line not in printed] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_found_and_says_what_it_is(page: str) -> None:
    found = blocks(page)
    assert read(page).count("```") == 2 * len(found)
    unnamed = [f"docs/{page}:{block.line}" for block in found if not block.kind]
    assert unnamed == [], "a block without a language would not be run"


def _commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the commands that are not run, and where they stand; those of the README too."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind == "sh" and not block.runs:
                yield from ((f"docs/{page}:{block.line}", words) for words in block.commands)
    readme = Block(kind="sh", line=1, text=_command_line())
    yield from (("README.md", words) for words in readme.commands)


def _command_line() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("## Command line\n\n```\n")[2].partition("```")[0]


def _verb(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words name, and the words after it."""
    verb: Any = typer.main.get_command(cli.app)
    while hasattr(verb, "list_commands") and words and not words[0].startswith("-"):
        default = getattr(verb, "default", None)
        inner = verb.commands.get(words[0])
        if inner is None:  # what `mpq profile net.py:make` is short for
            assert getattr(verb, "positional", False), f"no verb {words[0]}"
            return verb.commands[default], words
        verb, words = inner, words[1:]
    return verb, words


COMMANDS = [(where, words) for where, words in _commands() if words[0] == "mpq"]


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=lambda v: str(v)[:60])
def test_a_command_that_is_not_run_is_one_that_there_is(where: str, words: list[str]) -> None:
    """Its verb is there, and so are its options."""
    verb, rest = _verb(words[1:])
    names = [(*parameter.opts, *parameter.secondary_opts) for parameter in verb.params]
    known = {"--install-completion", *(name for group in names for name in group)}
    odd = [w for w in rest if w.startswith("-") and w.partition("=")[0] not in known]
    assert odd == [], f"{where}: {' '.join(words)}"

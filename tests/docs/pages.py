"""The documentation's pages as their reader sees them: blocks of code, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))

# A mark or the name of a file may stand before a block.
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|requires): (?P<said>[^>]+) -->\n)?"
    r"(?:^`(?P<file>[\w.]+)`:\n\n)?"
    r"^(?P<indent> *)```(?P<kind>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.S | re.M,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Args:
        kind: Its language; empty where none is named.
        text: What it holds.
        line: The page's line of the text's first one, from 1.
        file: The name of the file that it is, where the line before gives one.
        not_run: Why it is not run.
        requires: The module without which it cannot run.
        shown: Output that the page shows right below it.
    """

    kind: str
    text: str
    line: int
    file: str | None = None
    not_run: str | None = None
    requires: str | None = None
    shown: str = ""

    @property
    def runs(self) -> bool:
        """True where a reader would run it."""
        return self.file is None and self.not_run is None and self.kind in ("python", "sh")

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a block of ``sh``; without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def read(page: str) -> str:
    """Return a page of ``docs``."""
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return a page's blocks in order; output that follows its commands is put into theirs."""
    return list(_with_output(read(page)))


def _with_output(text: str) -> Iterator[Block]:
    found = list(_BLOCK.finditer(text))
    shown = {
        before.start(): match["text"]
        for before, match in zip(found, found[1:], strict=False)
        if before["kind"] == "sh"
        and match["kind"] == "text"
        and not text[before.end() : match.start()].strip()
    }
    for match in found:
        yield Block(
            kind=match["kind"],
            text=match["text"],
            line=text.count("\n", 0, match.start("text")) + 1,
            file=match["file"],
            not_run=match["said"] if match["mark"] == "not run" else None,
            requires=match["said"] if match["mark"] == "requires" else None,
            shown=shown.get(match.start(), ""),
        )

"""What sections are made of: plain data that ``templates/blocks.html`` renders.

Everything is escaped when it is rendered, except ``Markup``, which our own figures return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a section; ``kind`` names the macro that renders it."""

    kind: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class Prose(Block):
    """A paragraph."""

    kind = "prose"
    text: str


@dataclass(frozen=True, kw_only=True)
class Missing(Block):
    """Says that something was not measured, and how to measure it."""

    kind = "missing"
    text: str


@dataclass(frozen=True, kw_only=True)
class Facts(Block):
    """Names and values."""

    kind = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Items(Block):
    """A list of sentences."""

    kind = "items"
    rows: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Figure(Block):
    """A picture, or anything else that is markup already.

    Args:
        markup: Made by our own code.
        caption: Below it.
        readout: True where the script shows there what is pointed at.
    """

    kind = "figure"
    markup: Markup
    caption: str = ""
    readout: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table; numeric ones are aligned right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Args:
        text: What it says.
        order: What it is sorted by, where that is not the text.
        share: Length of a bar beside the text, 0 to 1.
        tint: Class of its colour.
        note: A second line, smaller.
        figure: A picture instead of the text.
        code: True for names of sites and kernels.
    """

    text: str = ""
    order: float | None = None
    share: float | None = None
    tint: str = ""
    note: str = ""
    figure: Markup | None = None
    code: bool = False


@dataclass(frozen=True, kw_only=True)
class Table(Block):
    """A table.

    Args:
        name: Of what it lists; names its controls.
        columns: Titles.
        rows: As many cells as columns each; the first one is the row's header.
        sortable: True for buttons in the header, and a field to filter by.
        stacked: True where each row becomes a card of its own on a narrow screen.
    """

    kind = "table"
    name: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False
    stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a report: its place, name in the navigation, title, lead and blocks."""

    id: str
    name: str
    title: str
    lead: str = ""
    blocks: Sequence[Block] = ()

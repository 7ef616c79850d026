"""Progress bars on standard error, shown only where somebody looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")

console = Console(stderr=True)


def shown() -> bool:
    """Bars appear on a terminal, unless ``MPQ_PROGRESS=0``."""
    return sys.stderr.isatty() and os.environ.get("MPQ_PROGRESS", "1") != "0"


def track(items: Sequence[T] | Iterable[T], title: str) -> Iterator[T]:
    """Iterate over ``items`` with a bar and the time that is left."""
    if not shown():
        yield from items
        return
    total = len(items) if isinstance(items, Sequence) else None
    with Progress(console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=title)


@contextmanager
def counted(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time that is left; what is yielded moves it on, from any thread."""
    if not shown():
        yield lambda done: None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)

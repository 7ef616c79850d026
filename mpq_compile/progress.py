"""Progress bars on standard error, one at a time, shown only where somebody looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")

console = Console(stderr=True)
_open = Lock()


def shown() -> bool:
    """Bars appear on a terminal, unless ``MPQ_PROGRESS=0``; of several ranks, the first has one."""
    if os.environ.get("RANK", "0") != "0":
        return False
    return sys.stderr.isatty() and os.environ.get("MPQ_PROGRESS", "1") != "0"


@contextmanager
def _bar() -> Iterator[Progress | None]:
    """Open a bar; None where nobody looks, or where this is work within what has a bar."""
    if not shown() or not _open.acquire(blocking=False):
        yield None
        return
    try:
        with Progress(console=console, transient=True) as progress:
            yield progress
    finally:
        _open.release()


def track(items: Sequence[T] | Iterable[T], title: str) -> Iterator[T]:
    """Iterate over ``items`` with a bar and the time that is left."""
    total = len(items) if isinstance(items, Sequence) else None
    with _bar() as progress:
        if progress is None:
            yield from items
        else:
            yield from progress.track(items, total=total, description=title)


@contextmanager
def counted(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Show a bar with the time that is left; what is yielded moves it on, from any thread."""
    with _bar() as progress:
        if progress is None:
            yield lambda done: None
        else:
            task = progress.add_task(title, total=total)
            yield lambda done: progress.advance(task, done)

"""What a command ends with, and how it leaves the process: JSON or text, and an exit code."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

_PLAIN_WIDTH = 120
# Runs until it is ended, and gives its argument the JSON object once it listens.
Service = Callable[[Callable[[Mapping[str, Any]], None]], None]


def _nothing(console: Console) -> None:
    """Print nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a command.

    Args:
        data: The JSON object of ``--json``; may hold paths, NumPy scalars and NaN.
        show: Prints the same for a person.
        exit_code: 0 done; 1 a budget or a check failed; 2 wrong input.
        failed: True for an error: ``show`` then prints on standard error.
        service: What runs before the command ends; its own object takes the place of ``data``.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    show: Callable[[Console], None] = _nothing
    exit_code: int = 0
    failed: bool = False
    service: Service | None = None


def json_ready(value: Any) -> Any:
    """Return ``value`` as plain JSON data; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_ready(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and not math.isfinite(number):
        return None
    return number if isinstance(number, (bool, int, float)) else str(number)


def json_text(data: Mapping[str, Any], indent: int | None = None) -> str:
    """Return ``data`` as standard JSON (no NaN), ASCII only."""
    return json.dumps(json_ready(data), indent=indent, allow_nan=False)


def console_on(stream: TextIO) -> Console:
    """Return a console that prints text as it is: brackets are shapes, and no path is cut."""
    width = None if stream.isatty() else _PLAIN_WIDTH
    return Console(
        file=stream, width=width, soft_wrap=True, markup=False, emoji=False, highlight=False
    )


@contextlib.contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """Send all that is printed to standard error; yield the real standard output.

    The file descriptor itself is redirected, because native libraries print past Python.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with (
            contextlib.redirect_stdout(sys.stderr),
            os.fdopen(saved, "w", encoding="utf-8", closefd=False) as stream,
        ):
            yield stream
    finally:
        _flush_native()
        os.dup2(saved, 1)
        os.close(saved)


def _flush_native() -> None:
    """Empty the buffers of C's stdio while they still go to standard error."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)

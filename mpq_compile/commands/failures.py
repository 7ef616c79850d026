"""From an exception to the outcome that a user sees."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from rich.console import Console
from rich.text import Text

from mpq_compile.commands.outcome import Outcome
from mpq_compile.errors import MpqError

INTERRUPTED = 130
_PARTS = ("where", "expected", "found", "remedy")


def failure(error: BaseException) -> Outcome:
    """Return what to print for an exception; its traceback is printed under ``MPQ_DEBUG=1``."""
    if os.environ.get("MPQ_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, MpqError):
        return _failed(error.to_json(), error.exit_code)
    if hasattr(error, "format_message"):  # typer's usage errors, whatever it derives them from
        return _failed(_usage(error), 2)
    if isinstance(error, OSError):
        return _failed(_system(error), 2)
    return _failed(_unexpected(error), 2)


def interrupted() -> Outcome:
    """Return the outcome of Ctrl-C."""
    remedy = "the same command goes on with what was finished and kept"
    return _failed(_record("Interrupted", "interrupted", remedy=remedy), INTERRUPTED)


def _record(kind: str, message: str, **parts: str | None) -> dict[str, Any]:
    return {"error": kind, "message": message, **{name: parts.get(name) for name in _PARTS}}


def _usage(error: Any) -> dict[str, Any]:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mpq"
    return _record(
        "UsageError",
        error.format_message(),
        where=command,
        expected=context.get_usage().strip() if context else None,
        remedy=f"see `{command} --help`",
    )


def _system(error: OSError) -> dict[str, Any]:
    return _record(
        type(error).__name__,
        error.strerror or str(error),
        where=None if error.filename is None else str(error.filename),
        remedy="check that the path exists and that you may read or write it",
    )


def _unexpected(error: BaseException) -> dict[str, Any]:
    return _record(
        type(error).__name__,
        f"unexpected {type(error).__name__}: {str(error).strip()[:400]}",
        remedy="run again with MPQ_DEBUG=1 to see where, and report it",
    )


def _failed(record: dict[str, Any], exit_code: int) -> Outcome:
    def show(console: Console) -> None:
        place = f"{record['where']}: " if record["where"] else ""
        console.print(Text.assemble(("error: ", "bold red"), place, record["message"]))
        for name in _PARTS[1:]:
            if record[name] is not None:
                console.print(Text.assemble((f"  {name}: ", "bold"), record[name]))

    return Outcome(data=record, show=show, exit_code=exit_code, failed=True)

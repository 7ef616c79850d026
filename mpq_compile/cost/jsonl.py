"""Measurements as JSON lines: one flat object a line, with the version of the layout.

A file whose name ends in ``.gz`` is compressed.

Raw samples are not exported: they serve to go on where the same machine left off.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mpq_compile.cost.measurement import Row, from_record, to_record
from mpq_compile.errors import ProfileError

JSONL_VERSION = 2
# Lines of version 1 lack what was not recorded then.
_READABLE = (1, 2)


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    """Write rows; the file appears whole or not at all. Raises ``ProfileError``."""
    lines = [json.dumps({"version": JSONL_VERSION, **to_record(*row)}) for row in rows]
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        content = "".join(f"{line}\n" for line in lines).encode()
        # Without a time the same rows are the same file.
        partial.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise ProfileError(
            "the export cannot be written",
            where=str(path),
            expected="a file in a folder that exists and may be written",
            found=error,
            remedy="choose another path",
        ) from error


def read_jsonl(path: Path) -> list[Row]:
    """Read rows; raise ``ProfileError`` with file and line for what is not a measurement."""
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        lines = text.decode().split("\n")
    except FileNotFoundError as error:
        raise ProfileError(
            "no such file",
            where=str(path),
            expected="a file that `mpq profile export` wrote",
            found="nothing",
            remedy="correct the path; nothing was imported",
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _not_an_export(str(path), error) from error
    return [
        _parsed(f"{path}:{number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parsed(where: str, line: str) -> Row:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _not_an_export(where, error) from error
    if not isinstance(record, dict) or record.pop("version", None) not in _READABLE:
        raise _not_an_export(where, line[:80])
    try:
        return from_record(record)
    except ProfileError as error:
        found = f"{error.message}: {error.found}, not {error.expected}"
        raise _not_an_export(where, found) from error


def _not_an_export(where: str, found: object) -> ProfileError:
    return ProfileError(
        "not an export of measurements",
        where=where,
        expected=f"JSON lines of version {JSONL_VERSION} or older, as `mpq profile export` writes",
        found=found,
        remedy="export again; nothing was imported",
    )

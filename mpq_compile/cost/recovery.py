"""A damaged measurements file: set aside under another name, its readable rows saved."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mpq_compile.cost.measurement import Row, from_record
from mpq_compile.cost.schema import APPLICATION_ID
from mpq_compile.errors import ProfileError

_HEADER = b"SQLite format 3\x00"
_APPLICATION = APPLICATION_ID.to_bytes(4, "big")
_APPLICATION_OFFSET = 68  # of the header, by SQLite's file format
_TABLE = b"CREATE TABLE measurements"
_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_LEAST_ROW_BYTES = 64


class RecoveryWarning(RuntimeWarning):
    """A damaged database was set aside and a new one made of what could be read."""


class DamagedDatabaseError(ProfileError):
    """The file is not a sound SQLite database."""

    def __init__(self, path: Path, damage: object) -> None:
        super().__init__(
            "the database is damaged",
            where=str(path),
            expected="a sound SQLite file",
            found=damage,
            remedy="close it, and open it where it may be written, as `mpq plan` or `mpq profile` "
            "with a model do: what can be read is recovered",
        )


class NotOursError(ProfileError):
    """The file is something else than a measurements database: it is left as it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            "not a measurements database",
            where=str(path),
            expected="a measurements database, or no file",
            found=f"a file of {path.stat().st_size} bytes that mpq has not written",
            remedy="set MPQ_DB to another file",
        )


def is_ours(path: Path) -> bool:
    """Tell whether a file, sound or damaged, is recognisably a measurements database.

    Its header names this program, or the text of its table stands in a binary file. SQLite's
    header alone is no sign: many programs keep such files.
    """
    content = path.read_bytes()
    header = content[: _APPLICATION_OFFSET + len(_APPLICATION)]
    if header.startswith(_HEADER) and header.endswith(_APPLICATION):
        return True
    return _TABLE in content and b"\x00" in content


def check_ours(path: Path) -> None:
    """Raise ``NotOursError`` for a file that no program's SQLite wrote and that is not ours.

    Nothing is created beside it for that. Missing and empty files are what a new database becomes.
    """
    if not path.is_file() or not os.access(path, os.R_OK):
        return
    with path.open("rb") as stream:
        start = stream.read(len(_HEADER))
    if start not in (b"", _HEADER) and not is_ours(path):
        raise NotOursError(path)


def damaged(path: Path, damage: object) -> ProfileError:
    """Return what to raise for a file that SQLite cannot read; only ours may be repaired."""
    return DamagedDatabaseError(path, damage) if is_ours(path) else NotOursError(path)


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether an error of SQLite means that the file is damaged."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGE_CODES


def check_sound(db: sqlite3.Connection, path: Path) -> None:
    """Raise ``DamagedDatabaseError`` where the file has lost its structure (quick_check)."""
    found = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
    if found != ["ok"]:
        raise DamagedDatabaseError(path, found[0] if found else "no answer of quick_check")


def database_uri(path: Path, options: str) -> str:
    """Return the SQLite URI of a file with options such as ``mode=ro``."""
    return f"{path.resolve().as_uri()}?{options}"


def set_aside(path: Path) -> Path:
    """Rename a database and its log to ``*.damaged-<n>``; return the new path.

    No process may have the file open: SQLite would pair the old file with the log of a new one.
    """
    aside = next(
        name
        for n in itertools.count(1)
        if not (name := path.with_name(f"{path.name}.damaged-{n}")).exists()
    )
    # SQLite finds the log of the renamed file by its name. The log goes first, so that a crash in
    # between does not leave it to a new file.
    for suffix in ("-wal", "-shm", ""):
        source = path.with_name(path.name + suffix)
        if source.exists():
            source.rename(aside.with_name(aside.name + suffix))
    return aside


def readable_rows(path: Path) -> list[Row]:
    """Return the rows of a damaged file that can be read and are valid; [] where none can."""
    for options in ("mode=ro", "mode=ro&immutable=1"):  # the second leaves out a broken log
        rows = _rows_of_file(path, options)
        if rows:
            return rows
    return []


def _rows_of_file(path: Path, options: str) -> list[Row]:
    try:
        with closing(sqlite3.connect(database_uri(path, options), uri=True)) as db:
            # Without this, SQLite gives up a truncated file at once.
            db.execute("PRAGMA writable_schema=ON")
            db.text_factory = lambda raw: raw.decode(errors="replace")
            return list(_scan(db, 1, _last_rowid(db, path)))
    except sqlite3.Error:
        return []


def _last_rowid(db: sqlite3.Connection, path: Path) -> int:
    """Return the last rowid, or a bound by the size of the file where its page is damaged."""
    try:
        return db.execute("SELECT max(rowid) FROM measurements NOT INDEXED").fetchone()[0] or 0
    except sqlite3.DatabaseError:
        return path.stat().st_size // _LEAST_ROW_BYTES


def _scan(db: sqlite3.Connection, first: int, last: int) -> Iterator[Row]:
    """Read the rows by rowid; halve a stretch that cannot be read until the bad rows stand alone.

    Explicit stack of stretches, each inclusive; the index is left alone, it may be damaged too.
    """
    # All columns: an older version has fewer.
    query = "SELECT * FROM measurements NOT INDEXED WHERE rowid BETWEEN ? AND ?"
    todo = [(first, last)]
    while todo:
        low, high = todo.pop()
        try:
            found = db.execute(query, (low, high))
            names = [column[0] for column in found.description]
            records = [dict(zip(names, record, strict=True)) for record in found]
        except sqlite3.DatabaseError:
            middle = (low + high) // 2
            todo += [(middle + 1, high), (low, middle)] if low < high else []
            continue
        yield from _valid(records)


def _valid(records: list[dict[str, object]]) -> Iterator[Row]:
    for record in records:
        try:
            yield from_record(record)
        except ProfileError:
            continue

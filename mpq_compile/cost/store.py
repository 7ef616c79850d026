"""Measurements on disk: one SQLite file a user, safe for several processes.

Of two measurements of one key the newer stays, whoever writes last: medians cannot be merged, and
runs hours apart were not made under one clock and load. So writers, imports and repairs may come
in any order and end with the same file.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from mpq_compile.cost.database import BUSY_S, Database
from mpq_compile.cost.jsonl import read_jsonl, write_jsonl
from mpq_compile.cost.lock import file_lock, make_cache_dir, user_cache_dir
from mpq_compile.cost.measurement import (
    COLUMNS,
    KEY_FIELDS,
    VALUE_FIELDS,
    Measurement,
    MeasurementKey,
    Row,
    from_record,
    to_record,
)
from mpq_compile.cost.recovery import DamagedDatabaseError, readable_rows, set_aside
from mpq_compile.errors import ProfileError

_SELECT = f"SELECT {', '.join(COLUMNS)} FROM measurements"
_WHERE = " AND ".join(f"{name} = :{name}" for name in KEY_FIELDS)
# An upsert keeps the rowid, so that rowids stay dense for a repair.
_UPSERT = f"""
INSERT INTO measurements ({", ".join(COLUMNS)}) VALUES ({", ".join(f":{c}" for c in COLUMNS)})
ON CONFLICT ({", ".join(KEY_FIELDS)}) DO UPDATE SET
    {", ".join(f"{name} = excluded.{name}" for name in VALUE_FIELDS)}"""


def default_path() -> Path:
    """Return ``MPQ_DB``, or ``measurements.sqlite`` in the user's cache folder."""
    given = os.environ.get("MPQ_DB")
    return Path(given) if given else user_cache_dir() / "measurements.sqlite"


class Store:
    """The measurements database; a context manager. Open one in each process and thread.

    Opening checks the file. A damaged one is set aside as ``*.damaged-<n>``, its readable rows
    are taken over, and a ``RuntimeWarning`` says so.

    Args:
        path: File, created where missing; :func:`default_path` for None. Only the folder of the
            user's cache is created.
        read_only: Never write. A file that may not be written is opened so by itself.

    Raises:
        ProfileError: The folder is missing, or the file is another program's or version's.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, read_only: bool = False
    ) -> None:
        self.path = default_path() if path is None else Path(path)
        if self.path.parent == user_cache_dir() and not read_only:
            make_cache_dir()
        self.read_only = read_only or _protected(self.path)
        _check_place(self.path, self.read_only)
        self._database = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing else may be asked of the store afterwards."""
        self._database.close()

    def __len__(self) -> int:
        count = "SELECT count(*) FROM measurements"
        return self._database.run(lambda db: db.execute(count).fetchone()[0])

    def get(self, key: MeasurementKey) -> Measurement | None:
        """Return the measurement of a key, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[MeasurementKey]) -> dict[MeasurementKey, Measurement]:
        """Return the measurements of those keys that have one, as of one moment."""
        wanted = list(dict.fromkeys(keys))
        return self._database.run(
            lambda db: {key: found for key in wanted if (found := _stored(db, key)) is not None}
        )

    def items(self) -> list[Row]:
        """Return all (key, measurement), sorted by key, as of one moment."""
        query = f"{_SELECT} ORDER BY {', '.join(KEY_FIELDS)}"
        return self._database.run(lambda db: [_row(record) for record in db.execute(query)])

    def put(self, key: MeasurementKey, value: Measurement) -> bool:
        """Store a measurement; return False where a newer one of the key stays instead."""
        return self.put_many([(key, value)]) == 1

    def put_many(self, rows: Iterable[Row]) -> int:
        """Store all in one transaction; return how many were stored, the others being older.

        Raises:
            ProfileError: The database is read-only, stays locked or cannot be written.
        """
        return _put_all(self._database, list(rows))

    def export_jsonl(self, path: str | os.PathLike[str]) -> int:
        """Write all measurements as JSON lines, sorted by key; return their number."""
        rows = self.items()
        write_jsonl(Path(path), rows)
        return len(rows)

    def import_jsonl(self, path: str | os.PathLike[str]) -> int:
        """Store the measurements of an export, all or none; return how many were stored.

        Raises:
            ProfileError: The file cannot be read, or a line is not a measurement.
        """
        return self.put_many(read_jsonl(Path(path)))

    def _open(self) -> Database:
        try:
            return Database(self.path, read_only=self.read_only)
        except DamagedDatabaseError as damage:
            if self.read_only:
                raise _damaged_read_only(self.path, damage) from damage
        # One process repairs; those that waited for it find a sound file.
        with file_lock(self.path.with_name(f"{self.path.name}.repair-lock"), BUSY_S):
            try:
                return Database(self.path, read_only=False)
            except DamagedDatabaseError as damage:
                return _repaired(self.path, damage)


def _repaired(path: Path, damage: DamagedDatabaseError) -> Database:
    """Set a damaged file aside and return a new one with the rows that could be read."""
    aside = set_aside(path)
    rows = readable_rows(aside)
    database = Database(path, read_only=False)
    _put_all(database, rows)
    warnings.warn(
        f"{path}: the measurements database was damaged ({damage}); it was set aside as "
        f"{aside.name}, and {len(rows)} readable measurements were recovered",
        RuntimeWarning,
        stacklevel=4,
    )
    return database


def _protected(path: Path) -> bool:
    """Tell whether the file, or its folder, where SQLite keeps the log, may not be written."""
    if not path.exists():
        return False
    return not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _check_place(path: Path, read_only: bool) -> None:
    """Refuse a path whose folder is missing, a folder, and a missing file that is only read."""
    if not path.parent.is_dir():
        message, found = "the folder of the database is missing", f"no folder {path.parent}"
        remedy = f"create it (mkdir -p {path.parent}), or set MPQ_DB to another file"
    elif path.is_dir():
        message, found, remedy = "the database is a folder", "a folder", "name a file in it"
    elif read_only and not path.exists():
        message, found, remedy = "no such database", "nothing", "measure first, with `mpq profile`"
    else:
        return
    raise ProfileError(
        message,
        where=str(path),
        expected="a measurements database in a folder that exists",
        found=found,
        remedy=remedy,
    )


def _damaged_read_only(path: Path, damage: DamagedDatabaseError) -> ProfileError:
    return ProfileError(
        "the database is damaged",
        where=str(path),
        expected="a sound SQLite file",
        found=damage,
        remedy="open it once where it may be written: what can be read is recovered",
    )


def _put_all(database: Database, rows: list[Row]) -> int:
    return database.run(lambda db: sum(_put(db, *row) for row in rows), write=True)


def _put(db: sqlite3.Connection, key: MeasurementKey, value: Measurement) -> bool:
    old = _stored(db, key)
    if old is not None and not value.supersedes(old):
        return False
    db.execute(_UPSERT, to_record(key, value))
    return True


def _stored(db: sqlite3.Connection, key: MeasurementKey) -> Measurement | None:
    record = db.execute(f"{_SELECT} WHERE {_WHERE}", asdict(key)).fetchone()
    return None if record is None else _row(record)[1]


def _row(record: tuple[object, ...]) -> Row:
    return from_record(dict(zip(COLUMNS, record, strict=True)))

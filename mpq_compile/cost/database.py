"""The SQLite file below the store: opened and checked, transactions, and errors made plain."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mpq_compile.cost.measurement import COLUMNS, KEY_FIELDS
from mpq_compile.cost.recovery import (
    DamagedDatabaseError,
    check_sound,
    database_uri,
    is_damage,
)
from mpq_compile.errors import ProfileError

SCHEMA_VERSION = 1
BUSY_S = 30.0

_APPLICATION_ID = 0x4D505131  # "MPQ1"
_TYPES = {
    "count": "INTEGER",
    "clock_mhz": "REAL",
    "time": "TEXT",
    **dict.fromkeys(KEY_FIELDS, "TEXT"),
}
_TABLE = f"""
CREATE TABLE IF NOT EXISTS measurements (
    {", ".join(f"{name} {_TYPES.get(name, 'REAL')}" for name in COLUMNS)},
    UNIQUE ({", ".join(KEY_FIELDS)})
)"""

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class Database:
    """One open connection in WAL mode, for the process and thread that opened it.

    Raises:
        DamagedDatabaseError: The file has lost its structure.
        ProfileError: It cannot be opened, or is another program's or version's.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._process = os.getpid()
        self._db: sqlite3.Connection | None = self._connect()

    def close(self) -> None:
        """Close the file; nothing may be run afterwards."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def run(self, work: Work[T], *, write: bool = False) -> T:
        """Do ``work`` in one transaction, again for as long as another process holds the file."""
        if write and self.read_only:
            raise self.error("the database is read-only", found="an attempt to write")
        if self._db is None or self._process != os.getpid():
            raise self.error(
                "the store is not open here",
                expected="a store opened in this process",
                found="closed" if self._db is None else "opened in a parent process",
                remedy="open a Store in each process",
            )
        db = self._db
        return self._retry(lambda: _transaction(db, work, write=write))

    def error(
        self,
        message: str,
        *,
        expected: str = "a measurements database that can be read and written",
        found: object,
        remedy: str = "set MPQ_DB to a file that this user may write",
    ) -> ProfileError:
        """Return an error that names the file."""
        return ProfileError(
            message, where=str(self.path), expected=expected, found=found, remedy=remedy
        )

    def _connect(self) -> sqlite3.Connection:
        if not self.read_only:
            return self._connect_as("mode=rwc")
        try:
            return self._connect_as("mode=ro")
        except ProfileError as error:
            if not _lacks_log(error):
                raise
        # A read-only folder cannot hold the log's index: read the file as it is.
        self._check_log_is_merged()
        return self._connect_as("mode=ro&immutable=1")

    def _check_log_is_merged(self) -> None:
        """Refuse to read a file whose newest rows stand in a log that cannot be read."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise self.error(
                "the log of the database cannot be read in a read-only folder",
                expected=f"no {log.name}, or a folder that may be written",
                found=f"{log.stat().st_size} bytes in it",
                remedy="open and close the database once where it may be written",
            )

    def _connect_as(self, options: str) -> sqlite3.Connection:
        uri = database_uri(self.path, options)
        db = self._retry(
            lambda: sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
        )
        try:
            self._retry(lambda: self._prepare(db))
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make a new file ours, refuse one that is not, check one that is."""
        try:
            if not self._is_new(db):
                check_sound(db, self.path)
            elif self.read_only:
                raise self.error("the database is empty", found="no table of measurements")
            else:
                db.execute("PRAGMA journal_mode=WAL")
                _transaction(db, _create, write=True)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise DamagedDatabaseError(self.path, error) from error
            raise

    def _is_new(self, db: sqlite3.Connection) -> bool:
        """Tell whether the file holds nothing; refuse another program's or version's."""
        application, version, tables = _transaction(db, _identity, write=False)
        if application == _APPLICATION_ID and version == SCHEMA_VERSION:
            return False
        if application == _APPLICATION_ID:
            raise self.error(
                "the database has another schema version",
                expected=f"version {SCHEMA_VERSION}",
                found=f"version {version}",
                remedy="set MPQ_DB to a new file, and import there what the other version exports",
            )
        if application or version or tables:
            raise self.error(
                "the database is another program's",
                expected="a measurements database, or no file",
                found=f"application id {application:#x}, version {version}, {tables} tables",
                remedy="set MPQ_DB to another file",
            )
        return True

    def _retry(self, work: Callable[[], T]) -> T:
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                return work()
            except sqlite3.Error as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise self._translated(error) from error
            time.sleep(random.uniform(0.001, 0.02))

    def _translated(self, error: sqlite3.Error) -> ProfileError:
        if is_damage(error):
            return DamagedDatabaseError(self.path, error)
        if _is_busy(error):
            return self.error(
                f"the database stayed locked for {BUSY_S:g} s",
                found=error,
                remedy="end the process that holds it, or set MPQ_DB to another file",
            )
        return self.error("the database cannot be used", found=error)


def _identity(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Return application id, version and, where both are 0, the number of tables and indexes.

    For one transaction: another process may be creating the table just now.
    """
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application or version:
        return application, version, 0
    return 0, 0, db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _create(db: sqlite3.Connection) -> None:
    """Create the table; a second process that comes here does the same, to no effect."""
    db.execute(_TABLE)
    db.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _transaction(db: sqlite3.Connection, work: Work[T], *, write: bool) -> T:
    db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        result = work(db)
        db.execute("COMMIT")
        return result
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _is_busy(error: sqlite3.Error) -> bool:
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _lacks_log(error: ProfileError) -> bool:
    return _code(error.__cause__) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


def _code(error: BaseException | None) -> int:
    """Return SQLite's primary result code; the extended codes keep it in the low byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

"""The SQLite file below the store: opened and checked, transactions, and errors made plain."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mpq_compile.cost import schema
from mpq_compile.cost.recovery import check_sound, damaged, database_uri, is_damage
from mpq_compile.cost.schema import APPLICATION_ID, SCHEMA_VERSION
from mpq_compile.errors import ProfileError

BUSY_S = 30.0

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
            version = self._version(db)
            if version:
                check_sound(db, self.path)
                self._update(db, version)
            elif self.read_only:
                raise self.error("the database is empty", found="no table of measurements")
            else:
                db.execute("PRAGMA journal_mode=WAL")
                _transaction(db, schema.create, write=True)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise damaged(self.path, error) from error
            raise
        # A process that is killed loses nothing by this; rounds need not wait for the disk.
        db.execute("PRAGMA synchronous=NORMAL")

    def _update(self, db: sqlite3.Connection, version: int) -> None:
        if version == SCHEMA_VERSION:
            return
        if self.read_only:
            schema.show_as_current(db)
        else:
            _transaction(db, schema.migrate, write=True)

    def _version(self, db: sqlite3.Connection) -> int:
        """Return the version of the file, 0 for a new one; refuse what is not ours to read."""
        application, version, tables = _transaction(db, schema.identity, write=False)
        if application == APPLICATION_ID and 1 <= version <= SCHEMA_VERSION:
            return version
        if application == APPLICATION_ID:
            raise self.error(
                "the database has another schema version",
                expected=f"version {SCHEMA_VERSION} or older",
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
        return 0

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
            return damaged(self.path, error)
        if _is_busy(error):
            return self.error(
                f"the database stayed locked for {BUSY_S:g} s",
                found=error,
                remedy="end the process that holds it, or set MPQ_DB to another file",
            )
        if _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            return self.error(
                "the database cannot be written",
                expected="room on the disk for a few more kilobytes",
                found=error,
                remedy="free some room, or set MPQ_DB to a file on another disk; what was stored "
                "before is sound",
            )
        return self.error("the database cannot be used", found=error)


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

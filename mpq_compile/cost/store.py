"""Measurements on disk: one SQLite file a user, safe for several processes.

Of two measurements of one key the newer stays, whoever writes last: medians cannot be merged, and
runs hours apart were not made under one clock and load. So writers, imports and repairs may come
in any order and end with the same file.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from mpq_compile.cost import samples
from mpq_compile.cost.database import BUSY_S, Database
from mpq_compile.cost.generations import Generation, generations, prune_stale
from mpq_compile.cost.jsonl import read_jsonl, write_jsonl
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
from mpq_compile.cost.recovery import (
    DamagedDatabaseError,
    RecoveryWarning,
    check_ours,
    readable_rows,
    set_aside,
)
from mpq_compile.cost.samples import Round, Sample
from mpq_compile.cost.shipped import SHIPPED_DIR, shipped_items, shipped_measurements
from mpq_compile.errors import DeviceError, ProfileError
from mpq_compile.lock import file_lock, make_cache_dir, user_cache_dir

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
    are taken over, and a ``RecoveryWarning`` says so.

    Args:
        path: File, created where missing; :func:`default_path` for None. Only the folder of the
            user's cache is created.
        read_only: Never write. A file that may not be written is opened so by itself.
        shipped: Folder of the measurements that stand in for what the file lacks.

    Raises:
        ProfileError: The folder is missing, or the file is another program's or version's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        read_only: bool = False,
        shipped: Path = SHIPPED_DIR,
    ) -> None:
        self.path = default_path() if path is None else Path(path)
        self._shipped = shipped
        if self.path.parent == user_cache_dir() and not read_only:
            make_cache_dir()
        _check_folder(self.path)
        check_ours(self.path)
        self.read_only = read_only or not os.access(self.path.parent, os.W_OK)
        with ExitStack() as held:
            if not self.read_only:
                held.enter_context(_lock(self.path, shared=True))
            self.read_only = self.read_only or _protected(self.path)
            _check_file(self.path, self.read_only)
            self._database = self._open(held)
            self._held = held.pop_all()

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
        self._held.close()

    def __len__(self) -> int:
        count = "SELECT count(*) FROM measurements"
        return self._database.run(lambda db: db.execute(count).fetchone()[0])

    def get(self, key: MeasurementKey) -> Measurement | None:
        """Return the measurement of a key, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[MeasurementKey]) -> dict[MeasurementKey, Measurement]:
        """Return the measurements of those keys that have one, as of one moment.

        Those that came with the package stand in for what the database lacks.
        """
        wanted = list(dict.fromkeys(keys))
        own = self._database.run(
            lambda db: {key: found for key in wanted if (found := _stored(db, key)) is not None}
        )
        return own | shipped_measurements((key for key in wanted if key not in own), self._shipped)

    def rows_on(self, device: str, operators: Sequence[str]) -> dict[MeasurementKey, Measurement]:
        """Return what is known of some operators on a device, as :meth:`get_many` gives it."""
        own = {key: row for key, row in self.items(operators) if key.device == device}
        return dict(shipped_items(device, operators, self._shipped)) | own

    def items(self, operators: Sequence[str] | None = None) -> list[Row]:
        """Return all (key, measurement) of the database, or those of some operators, by key."""
        among = (
            "" if operators is None else f" WHERE operator IN ({', '.join('?' * len(operators))})"
        )
        query = f"{_SELECT}{among} ORDER BY {', '.join(KEY_FIELDS)}"
        return self._database.run(
            lambda db: [_row(record) for record in db.execute(query, operators or ())]
        )

    def put(self, key: MeasurementKey, value: Measurement) -> bool:
        """Store a measurement; return False where a newer one of the key stays instead."""
        return self.put_many([(key, value)]) == 1

    def put_many(self, rows: Iterable[Row]) -> int:
        """Store all in one transaction; return how many were stored, the others being older.

        Raises:
            ProfileError: The database is read-only, stays locked or cannot be written.
        """
        return _put_all(self._database, list(rows))

    def add_round(self, round_: Round) -> int:
        """Store a round of samples, in one transaction; return its number."""
        return self._database.run(lambda db: samples.append(db, round_), write=True)

    def samples(self, keys: Iterable[MeasurementKey]) -> dict[MeasurementKey, list[Sample]]:
        """Return the raw samples of each key, the oldest first; [] where there are none."""
        wanted = list(dict.fromkeys(keys))
        return self._database.run(lambda db: samples.read(db, wanted))

    def reference_times(self, reference: MeasurementKey, count: int) -> list[float]:
        """Return the reference's times (µs) around the latest ``count`` rounds, oldest first."""
        return self._database.run(lambda db: samples.reference_times(db, reference, count))

    def generations(self) -> list[Generation]:
        """Return how many rows there are by device, toolchain and kernels."""
        return self._database.run(generations)

    def prune_stale(self, toolchain: str, kernels: str) -> list[Generation]:
        """Delete what another toolchain or other kernels measured; return what was deleted."""
        return self._database.run(lambda db: prune_stale(db, toolchain, kernels), write=True)

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

    def _open(self, held: ExitStack) -> Database:
        """Open the file, after a repair where it is damaged.

        Each open store shares a lock, and a repair holds it alone: a file that is renamed while
        another process has it open is lost, because SQLite finds the log by its name.
        """
        try:
            return Database(self.path, read_only=self.read_only)
        except DamagedDatabaseError:
            if self.read_only:
                raise
        held.close()
        with _lock(self.path, shared=False):
            _repair(self.path)
        held.enter_context(_lock(self.path, shared=True))
        return Database(self.path, read_only=False)


@contextmanager
def _lock(path: Path, *, shared: bool) -> Iterator[None]:
    """Hold the lock beside the file; where it stays taken, say by a ``ProfileError`` why."""
    with ExitStack() as held:
        try:
            held.enter_context(
                file_lock(path.with_name(f"{path.name}-lock"), BUSY_S, shared=shared)
            )
        except DeviceError as error:
            raise ProfileError(
                "the database cannot be locked" if shared else "a damaged database is still open",
                where=str(path),
                expected=error.expected,
                found=f"{error.message}, {error.found}",
                remedy="end the other processes that use it, or set MPQ_DB to another file",
            ) from error
        yield


def _repair(path: Path) -> None:
    """Set a damaged file aside and make a new one of the rows that can be read."""
    try:
        Database(path, read_only=False).close()
        return  # another process has repaired it
    except DamagedDatabaseError as error:
        damage = error.found
    aside = set_aside(path)
    rows = readable_rows(aside)
    with closing(Database(path, read_only=False)) as database:
        _put_all(database, rows)
    warnings.warn(
        f"{path}: the measurements database was damaged ({damage}); it was set aside as "
        f"{aside.name}, and {len(rows)} readable measurements were recovered",
        RecoveryWarning,
        stacklevel=4,
    )


def _protected(path: Path) -> bool:
    """Tell whether the file is there and may not be written."""
    return path.exists() and not os.access(path, os.W_OK)


def check_default_folder() -> None:
    """Raise ``ProfileError`` where the folder of :func:`default_path` is missing and not ours.

    For whoever needs a store only after minutes of other work.
    """
    if (path := default_path()).parent != user_cache_dir():
        _check_folder(path)


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise _misplaced(
            path,
            "the folder of the database is missing",
            found=f"no folder {path.parent}",
            remedy=f"create it (mkdir -p {path.parent}), or set MPQ_DB to another file",
        )


def _check_file(path: Path, read_only: bool) -> None:
    """Refuse a folder, and a missing file that is only read."""
    if path.is_dir():
        raise _misplaced(
            path, "the database is a folder", found="a folder", remedy="name a file in it"
        )
    if read_only and not path.exists():
        raise _misplaced(
            path,
            "no such database",
            found="nothing",
            remedy="measure first, or set MPQ_DB to a file in a folder that may be written",
        )


def _misplaced(path: Path, message: str, *, found: str, remedy: str) -> ProfileError:
    return ProfileError(
        message,
        where=str(path),
        expected="a measurements database in a folder that exists",
        found=found,
        remedy=remedy,
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

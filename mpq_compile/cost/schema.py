"""The tables of the measurements database, and how files of older versions are brought along."""

from __future__ import annotations

import sqlite3

from mpq_compile.cost.measurement import COLUMNS, KEY_FIELDS, REQUIRED

SCHEMA_VERSION = 2
APPLICATION_ID = 0x4D505131  # "MPQ1"

_TYPES = {
    **dict.fromkeys(("count", "outliers", "repeated"), "INTEGER"),
    **dict.fromkeys((*KEY_FIELDS, "time"), "TEXT"),
    "settled": "INTEGER NOT NULL DEFAULT 1",
}
_ADDED = [name for name in COLUMNS if name not in REQUIRED]  # by version 2
_KEY = ", ".join(KEY_FIELDS)


def _column(name: str) -> str:
    return f"{name} {_TYPES.get(name, 'REAL')}"


_MEASUREMENTS = f"""
CREATE TABLE IF NOT EXISTS measurements (
    {", ".join(map(_column, COLUMNS))},
    UNIQUE ({_KEY})
)"""
# Raw samples, never changed: a round visits several kernels, a series is the samples of one.
_SAMPLES = (
    f"""
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY,
    {", ".join(f"{name} TEXT NOT NULL" for name in KEY_FIELDS)},
    UNIQUE ({_KEY})
)""",
    """
CREATE TABLE IF NOT EXISTS rounds (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    reference INTEGER NOT NULL REFERENCES series,
    before_us REAL NOT NULL,
    after_us REAL NOT NULL,
    clock_mhz REAL,
    load REAL,
    time TEXT NOT NULL,
    kept INTEGER NOT NULL
)""",
    """
CREATE TABLE IF NOT EXISTS samples (
    series INTEGER NOT NULL REFERENCES series,
    round INTEGER NOT NULL REFERENCES rounds,
    us REAL NOT NULL,
    PRIMARY KEY (series, round)
) WITHOUT ROWID""",
)
_INDEX = "CREATE INDEX IF NOT EXISTS rounds_by_reference ON rounds (reference)"


def identity(db: sqlite3.Connection) -> tuple[int, int, int]:
    """Return application id, version and, where both are 0, the number of tables and indexes.

    For one transaction: another process may be creating the tables just now.
    """
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application or version:
        return application, version, 0
    return 0, 0, db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def create(db: sqlite3.Connection) -> None:
    """Create the tables; a second process that comes here does the same, to no effect."""
    for statement in (_MEASUREMENTS, *_SAMPLES, _INDEX):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def migrate(db: sqlite3.Connection) -> None:
    """Bring a file of version 1 to this one, in the caller's transaction; its rows stay."""
    if identity(db)[1] >= SCHEMA_VERSION:
        return  # another process has done it
    for name in _ADDED:
        db.execute(f"ALTER TABLE measurements ADD COLUMN {_column(name)}")
    create(db)


def show_as_current(db: sqlite3.Connection) -> None:
    """Make a file of version 1 that is only read look like one of this version, without samples."""
    added = ", ".join(f"{1 if name == 'settled' else 'NULL'} AS {name}" for name in _ADDED)
    db.execute("PRAGMA temp_store=MEMORY")
    db.execute(
        "CREATE TEMP VIEW measurements AS"
        f" SELECT {', '.join(REQUIRED)}, {added} FROM main.measurements"
    )
    for statement in _SAMPLES:
        db.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE"))

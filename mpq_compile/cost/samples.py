"""Raw samples: every round of timing as it was taken. Rows are added and never changed.

A round visits some kernels once, between two looks at the reference workload. It is written in
one transaction as soon as it ends, so that a killed process loses the round that it was in.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from mpq_compile.cost.measurement import KEY_FIELDS, MeasurementKey

_NAMES = ", ".join(KEY_FIELDS)
_PLACES = ", ".join(f":{name}" for name in KEY_FIELDS)
_WHERE = " AND ".join(f"{name} = :{name}" for name in KEY_FIELDS)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One pass over some kernels.

    Args:
        reference: Key of the reference workload on this device.
        before_us, after_us: Its time before and after the pass, µs.
        clock_mhz, load: Of the device after the pass; None where not known.
        time: When it ended (``utc_now``).
        kept: False where the reference was off, so that the round was repeated.
        times_us: Time of each kernel, µs a call.
    """

    reference: MeasurementKey
    before_us: float
    after_us: float
    clock_mhz: float | None
    load: float | None
    time: str
    kept: bool
    times_us: Mapping[MeasurementKey, float]

    def sample(self, number: int, us: float) -> Sample:
        """Return one of its samples; ``number`` is the round's in the database."""
        return Sample(
            round=number,
            us=us,
            before_us=self.before_us,
            after_us=self.after_us,
            clock_mhz=self.clock_mhz,
            load=self.load,
            time=self.time,
            kept=self.kept,
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One kernel in one round; the fields are those of the round."""

    round: int
    us: float
    before_us: float
    after_us: float
    clock_mhz: float | None
    load: float | None
    time: str
    kept: bool


def append(db: sqlite3.Connection, round_: Round) -> int:
    """Write a round with its samples, in the caller's transaction; return its number."""
    cursor = db.execute(
        "INSERT INTO rounds (reference, before_us, after_us, clock_mhz, load, time, kept)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            _series(db, round_.reference),
            round_.before_us,
            round_.after_us,
            round_.clock_mhz,
            round_.load,
            round_.time,
            int(round_.kept),
        ),
    )
    number = int(cursor.lastrowid or 0)
    db.executemany(
        "INSERT INTO samples (series, round, us) VALUES (?, ?, ?)",
        [(_series(db, key), number, us) for key, us in round_.times_us.items()],
    )
    return number


def read(
    db: sqlite3.Connection, keys: Iterable[MeasurementKey]
) -> dict[MeasurementKey, list[Sample]]:
    """Return the samples of each key, the oldest first."""
    query = (
        "SELECT round, us, before_us, after_us, clock_mhz, load, time, kept"
        " FROM series JOIN samples ON series = series.id JOIN rounds ON round = rounds.id"
        f" WHERE {_WHERE} ORDER BY round"
    )
    return {key: [_sample(*row) for row in db.execute(query, asdict(key))] for key in keys}


def reference_times(db: sqlite3.Connection, reference: MeasurementKey, count: int) -> list[float]:
    """Return the reference's time before and after the latest ``count`` rounds, oldest first."""
    query = (
        "SELECT after_us, before_us FROM rounds"
        f" WHERE reference = (SELECT id FROM series WHERE {_WHERE}) ORDER BY id DESC LIMIT :count"
    )
    rows = db.execute(query, asdict(reference) | {"count": count}).fetchall()
    return [us for row in rows for us in row][::-1]


def _series(db: sqlite3.Connection, key: MeasurementKey) -> int:
    """Return the number of a key's series, which begins where it is missing."""
    values = asdict(key)
    found = db.execute(f"SELECT id FROM series WHERE {_WHERE}", values).fetchone()
    if found is None:
        insert = f"INSERT INTO series ({_NAMES}) VALUES ({_PLACES}) RETURNING id"
        found = db.execute(insert, values).fetchone()
    return int(found[0])


def _sample(
    number: int,
    us: float,
    before_us: float,
    after_us: float,
    clock_mhz: float | None,
    load: float | None,
    time: str,
    kept: int,
) -> Sample:
    return Sample(
        round=number,
        us=us,
        before_us=before_us,
        after_us=after_us,
        clock_mhz=clock_mhz,
        load=load,
        time=time,
        kept=bool(kept),
    )

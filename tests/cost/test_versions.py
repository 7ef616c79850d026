"""Databases and exports of version 1 are brought along; stale rows stay until they are pruned."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from measurements import key, measured, open_store

from mpq_compile.cost.measurement import KEY_FIELDS, REQUIRED, to_record
from mpq_compile.cost.samples import Round
from mpq_compile.cost.schema import APPLICATION_ID, SCHEMA_VERSION
from mpq_compile.cost.store import Store
from mpq_compile.errors import ProfileError

ROWS = [(key(n), measured(n + 1.0)) for n in range(50)]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file as version 1 wrote it."""
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            f"CREATE TABLE measurements ({', '.join(REQUIRED)}, UNIQUE ({', '.join(KEY_FIELDS)}))"
        )
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute("PRAGMA user_version=1")
        places = ", ".join(f":{name}" for name in REQUIRED)
        db.executemany(
            f"INSERT INTO measurements VALUES ({places})", [to_record(*row) for row in ROWS]
        )
    return path


def version(path: Path) -> int:
    with sqlite3.connect(path) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def a_round(number: int, kernels: str = "kernels") -> Round:
    reference = dataclasses.replace(key(), operator="reference", kernels=kernels)
    return Round(
        reference=reference, before_us=20.0, after_us=21.0, clock_mhz=None, load=0.5,
        time="2025-01-31T12:00:00+00:00", kept=True,
        times_us={dataclasses.replace(key(number), kernels=kernels): 5.0},
    )  # fmt: skip


def test_a_file_of_version_1_is_migrated_in_place(old: Path) -> None:
    with Store(old) as store:
        assert dict(store.items()) == dict(ROWS)
        assert store.add_round(a_round(0)) == 1
        assert store.put(key(0), dataclasses.replace(measured(second=9), settled=False, low_us=1.0))
    assert version(old) == SCHEMA_VERSION
    with Store(old) as store:
        found = store.get(key(0))
        assert found is not None and (found.settled, found.low_us) == (False, 1.0)
        assert len(store) == len(ROWS)


def test_a_migration_that_fails_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("the power is off")

    monkeypatch.setattr("mpq_compile.cost.schema.create", broken)
    with pytest.raises(ProfileError, match="cannot be used"):
        Store(old)
    monkeypatch.undo()
    assert version(old) == 1
    with Store(old) as store:
        assert dict(store.items()) == dict(ROWS)


def test_processes_migrate_together(old: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    openers = [context.Process(target=open_store, args=(old, barrier)) for _ in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(timeout=60)
        assert opener.exitcode == 0
    with Store(old) as store:
        assert dict(store.items()) == dict(ROWS) | {key(-1): measured()}


def test_a_file_of_version_1_is_only_read(old: Path) -> None:
    before = old.read_bytes()
    with Store(old, read_only=True) as store:
        assert dict(store.items()) == dict(ROWS)
        assert store.get(key(3)) == measured(4.0)
        assert store.samples([key(3)]) == {key(3): []}
        assert [g.measurements for g in store.generations()] == [len(ROWS)]
    assert old.read_bytes() == before


def test_a_damaged_file_of_version_1_is_recovered(old: Path) -> None:
    Store(old, read_only=True).close()
    data = bytearray(old.read_bytes())
    data[4096 * 2 : 4096 * 3] = b"\xa5" * 4096  # the index
    old.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="damaged-1"), Store(old) as store:
        assert dict(store.items()) == dict(ROWS)


def test_an_export_of_version_1_is_imported(tmp_path: Path) -> None:
    lines = [{name: to_record(*row)[name] for name in REQUIRED} for row in ROWS]
    text = "".join(json.dumps({"version": 1, **line}) + "\n" for line in lines)
    (tmp_path / "old.jsonl").write_text(text)
    with Store(tmp_path / "new.sqlite") as store:
        assert store.import_jsonl(tmp_path / "old.jsonl") == len(ROWS)
        assert dict(store.items()) == dict(ROWS)


def test_stale_rows_are_kept_until_they_are_pruned(tmp_path: Path) -> None:
    stale = [(dataclasses.replace(key, kernels="older"), value) for key, value in ROWS[:7]]
    path = tmp_path / "m.sqlite"
    with Store(path) as store:
        store.put_many([*ROWS, *stale])
        for n in range(5):
            store.add_round(a_round(n))
            store.add_round(a_round(n, "older"))
    with Store(path) as store:
        found = {g.kernels: (g.measurements, g.samples) for g in store.generations()}
        assert found == {"kernels": (50, 5), "older": (7, 5)}

        deleted = store.prune_stale("toolchain", "kernels")
        assert [(g.kernels, g.measurements, g.samples) for g in deleted] == [("older", 7, 5)]
        assert dict(store.items()) == dict(ROWS)
        assert len(store.samples([key(0)])[key(0)]) == 1
        assert store.samples([stale[0][0]]) == {stale[0][0]: []}
        assert store.prune_stale("toolchain", "kernels") == []


def test_a_sample_cannot_be_stored_twice(tmp_path: Path) -> None:
    with Store(tmp_path / "m.sqlite") as store:
        number = store.add_round(a_round(0))
        with pytest.raises(ProfileError, match="UNIQUE"):
            store._database.run(
                lambda db: db.execute(
                    f"INSERT INTO samples VALUES (1, {number}, 5.0), (2, 1, 5.0)"
                ),
                write=True,
            )
        assert [sample.round for sample in store.samples([key(0)])[key(0)]] == [number]

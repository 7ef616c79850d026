"""The store: newest wins, nothing is lost between processes, errors say what to do."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from measurements import create_many, key, measured, write_many

from mpq_compile.cost import database
from mpq_compile.cost.store import Store, default_path
from mpq_compile.errors import ProfileError
from mpq_compile.lock import file_lock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite"


def test_put_get_and_reopen(path: Path) -> None:
    with Store(path) as store:
        assert store.get(key()) is None
        assert store.put(key(), measured())
        assert store.get(key()) == measured()
        assert len(store) == 1
    with Store(path) as store:
        assert store.items() == [(key(), measured())]


def test_every_part_of_the_key_counts(path: Path) -> None:
    with Store(path) as store:
        store.put(key(), measured())
        for name in ("device", "toolchain", "kernels", "operator", "shape", "candidate"):
            other = type(key())(**{**vars(key()), name: "other"})
            assert store.get(other) is None


def test_get_many_leaves_out_what_is_not_there(path: Path) -> None:
    with Store(path) as store:
        store.put_many((key(n), measured(n + 1.0)) for n in range(3))
        found = store.get_many(key(n) for n in (2, 7, 0, 2))
    assert found == {key(2): measured(3.0), key(0): measured(1.0)}


def test_the_newer_stays_in_any_order(tmp_path: Path) -> None:
    values = [measured(5.0, second=1), measured(4.0, second=3), measured(6.0, second=2)]
    for number, order in enumerate(itertools.permutations(values)):
        with Store(tmp_path / f"{number}.sqlite") as store:
            for value in order:
                store.put(key(), value)
            assert store.get(key()) == measured(4.0, second=3)


def test_put_tells_whether_it_stored(path: Path) -> None:
    with Store(path) as store:
        assert store.put(key(), measured(second=5)) is True
        assert store.put(key(), measured(second=4)) is False
        assert store.put(key(), measured(second=5)) is False
        assert store.put(key(), measured(second=6)) is True


def test_two_processes_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    writers = [
        context.Process(target=write_many, args=(path, barrier, first, 60)) for first in (0, 1000)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=25)
        assert writer.exitcode == 0
    with Store(path) as store:
        assert len(store) == 121
        wanted = [*range(60), *range(1000, 1060)]
        assert store.get_many(map(key, wanted)) == {key(n): measured(n + 1.0) for n in wanted}
        shared = store.get(key(-1))
    assert shared is not None and shared.time.startswith("2025-01-31T12:00:59")


def test_processes_create_one_file_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    creators = [
        context.Process(target=create_many, args=(tmp_path, barrier, number, 60))
        for number in range(3)
    ]
    for creator in creators:
        creator.start()
    for creator in creators:
        creator.join(timeout=25)
        assert creator.exitcode == 0
    for turn in range(60):
        with Store(tmp_path / f"{turn}.sqlite") as store:
            assert len(store) == 3


def test_a_failed_transaction_leaves_nothing(path: Path) -> None:
    def rows():
        yield key(0), measured()
        raise RuntimeError("the measurement broke off")

    with Store(path) as store:
        with pytest.raises(RuntimeError):
            store.put_many(rows())
        assert len(store) == 0


def test_a_locked_database_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    with Store(path) as store:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert store.get(key()) is None
        with pytest.raises(ProfileError, match="stayed locked"):
            store.put(key(), measured())
        other.execute("ROLLBACK")
        other.close()
        assert store.put(key(), measured())


def test_default_folder_is_created(cache_folder: Path) -> None:
    assert not cache_folder.exists()
    with Store() as store:
        store.put(key(), measured())
    assert (cache_folder / "measurements.sqlite").exists()


def test_mpq_db_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQ_DB", str(path))
    assert default_path() == path
    Store().close()
    assert path.exists()


@pytest.mark.parametrize("by_variable", [False, True])
def test_a_missing_folder_is_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    path = tmp_path / "no" / "such" / "m.sqlite"
    monkeypatch.setenv("MPQ_DB", str(path))
    with pytest.raises(ProfileError, match="folder of the database is missing") as caught:
        Store(None if by_variable else path)
    assert caught.value.where == str(path)
    assert "mkdir" in str(caught.value.remedy)
    assert not path.parent.exists()


def test_a_folder_is_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="is a folder"):
        Store(tmp_path)


def test_read_only_reads_and_refuses_to_write(path: Path) -> None:
    with pytest.raises(ProfileError, match="no such database"):
        Store(path, read_only=True)
    with Store(path) as store:
        store.put(key(), measured())
    with Store(path, read_only=True) as store:
        assert store.get(key()) == measured()
        with pytest.raises(ProfileError, match="read-only") as caught:
            store.put(key(), measured(second=9))
        assert caught.value.remedy
        assert store.items() == [(key(), measured())]


def test_permissions_make_it_read_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as store:
        store.put(key(), measured())
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to anything
    with Store(path) as store:
        assert store.read_only
        assert store.get(key()) == measured()


def test_a_read_only_folder_is_read_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as store:
        store.put(key(), measured())
    connect, asked = sqlite3.connect, []

    def connect_without_log(name: str, **options: object) -> sqlite3.Connection:
        asked.append(name)
        if "immutable" not in name:
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error
        return connect(name, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(sqlite3, "connect", connect_without_log)
    with Store(path, read_only=True) as store:
        assert store.get(key()) == measured()
    assert [("immutable" in uri) for uri in asked] == [False, True]


def test_a_log_that_cannot_be_read_is_not_ignored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(path).close()
    path.with_name(f"{path.name}-wal").write_bytes(b"newest rows")

    def connect_without_log(*_: object, **__: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY
        raise error

    monkeypatch.setattr(sqlite3, "connect", connect_without_log)
    with pytest.raises(ProfileError, match="the log of the database cannot be read"):
        Store(path, read_only=True)


def test_closing_frees_the_lock_and_so_does_a_failed_opening(path: Path) -> None:
    with Store(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ProfileError, match="another schema version"):
        Store(path)
    with file_lock(path.with_name(f"{path.name}-lock"), 0.0):
        pass


def test_a_write_that_the_system_refuses(path: Path) -> None:
    Store(path).close()
    with Store(path) as store:
        store._database.run(lambda db: None)
        assert store._database._db is not None
        store._database._db.execute("PRAGMA query_only=1")
        with pytest.raises(ProfileError, match="cannot be used") as caught:
            store.put(key(), measured())
        assert "readonly" in str(caught.value.found)


def test_another_version_is_refused(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ProfileError, match="another schema version") as caught:
        Store(path)
    assert (caught.value.expected, caught.value.found) == (
        "version 2 or older",
        "version 99",
    )


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(ProfileError, match="another program's"):
        Store(path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    with Store(path) as store:
        assert store.put(key(), measured())


def test_a_closed_store_says_so(path: Path) -> None:
    store = Store(path)
    store.close()
    store.close()
    with pytest.raises(ProfileError, match="not open here"):
        store.get(key())


def test_a_store_does_not_cross_a_fork(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(path) as store:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(ProfileError, match="opened in a parent process"):
            store.get(key())


def test_odd_names_in_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20é.sqlite"
    with Store(path) as store:
        store.put(key(), measured())
    assert path.exists() and stat.S_ISREG(path.stat().st_mode)
    with Store(path, read_only=True) as store:
        assert len(store) == 1

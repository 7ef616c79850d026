"""A damaged database is set aside, its readable rows are kept, and a warning says so."""

from __future__ import annotations

import multiprocessing
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from measurements import key, measured, open_store

from mpq_compile.cost import store as store_module
from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.recovery import readable_rows, set_aside
from mpq_compile.cost.store import Store
from mpq_compile.errors import ProfileError

ROWS = 400
PAGE = 4096
HEADER = 100  # bytes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.sqlite"
    with Store(path) as store:
        store.put_many((key(n), measured(n + 1.0)) for n in range(ROWS))
    return path


def overwrite(path: Path, first: int, last: int) -> None:
    """Fill the bytes [first, last) with 0xA5."""
    data = bytearray(path.read_bytes())
    data[first:last] = b"\xa5" * (min(last, len(data)) - first)
    path.write_bytes(data)


def reopened(path: Path) -> dict[MeasurementKey, Measurement]:
    with pytest.warns(RuntimeWarning, match=r"set aside as m\.sqlite\.damaged-1"), Store(path) as s:
        return dict(s.items())


def assert_true_rows(rows: dict[MeasurementKey, Measurement]) -> None:
    """Whatever was recovered is what had been measured."""
    truth = {key(n): measured(n + 1.0) for n in range(ROWS)}
    assert rows.items() <= truth.items()


@pytest.mark.parametrize("share", [0.15, 0.4, 0.65, 0.9])
def test_damage_inside_keeps_the_other_rows(path: Path, share: float) -> None:
    pages = path.stat().st_size // PAGE
    bad = int(pages * share) * PAGE
    overwrite(path, bad, bad + PAGE)
    rows = reopened(path)
    assert_true_rows(rows)
    assert len(rows) >= ROWS * 0.9
    assert path.with_name("m.sqlite.damaged-1").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Store(path) as store:  # sound again, and usable
            assert len(store) == len(rows)
            assert store.put(key(ROWS + 1), measured())


def test_a_truncated_file_keeps_what_is_left(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4 // PAGE * PAGE])
    rows = reopened(path)
    assert_true_rows(rows)
    assert len(rows) >= ROWS // 4


def test_nothing_readable_starts_anew(path: Path) -> None:
    overwrite(path, HEADER, path.stat().st_size)
    before = path.read_bytes()
    assert reopened(path) == {}
    assert path.with_name("m.sqlite.damaged-1").read_bytes() == before


def test_a_damaged_header_is_still_ours(path: Path) -> None:
    overwrite(path, 0, HEADER)
    assert_true_rows(reopened(path))


def recipes(path: Path) -> None:
    """Make another program's database, then damage it."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE recipes (name TEXT)")
        db.executemany("INSERT INTO recipes VALUES (?)", [("soup" * 100,)] * 100)
    overwrite(path, 16, 64)


def source(path: Path) -> None:
    """Write Python that speaks of the table."""
    path.write_text('sql = "CREATE TABLE measurements (device TEXT)"\n' * 99, encoding="utf-8")


def noise(path: Path) -> None:
    """Write a binary file."""
    path.write_bytes(b"\x00garbage" * 5000)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("make", [recipes, source, noise])
def test_what_is_not_ours_is_left_alone(
    tmp_path: Path, make: Callable[[Path], None], read_only: bool
) -> None:
    path = tmp_path / "net.py"
    make(path)
    before = path.read_bytes()
    with pytest.raises(ProfileError, match="not a measurements database") as caught:
        Store(path, read_only=read_only)
    assert caught.value.remedy == "set MPQ_DB to another file"
    assert path.read_bytes() == before
    beside = {file.name for file in tmp_path.iterdir()}
    # SQLite's own kind of file is known as another program's only once it was opened.
    assert beside <= ({"net.py", "net.py-lock"} if make is recipes else {"net.py"})


def test_a_damaged_root_page_loses_only_data(path: Path) -> None:
    overwrite(path, PAGE, 2 * PAGE)
    assert_true_rows(reopened(path))


def test_damaged_files_are_numbered(path: Path) -> None:
    for number in (1, 2):
        overwrite(path, HEADER, path.stat().st_size)
        with pytest.warns(RuntimeWarning, match=f"damaged-{number}"):
            Store(path).close()
    assert path.with_name("m.sqlite.damaged-2").exists()


def test_the_log_goes_along(path: Path) -> None:
    wal = path.with_name("m.sqlite-wal")
    wal.write_bytes(b"log")
    aside = set_aside(path)
    assert not wal.exists() and not path.exists()
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"log"


def test_a_sound_file_is_read_whole(path: Path) -> None:
    assert dict(readable_rows(path)) == {key(n): measured(n + 1.0) for n in range(ROWS)}


def test_read_only_damage_is_an_error(path: Path) -> None:
    overwrite(path, HEADER, 2 * PAGE)
    before = path.read_bytes()
    with pytest.raises(ProfileError, match="damaged"):
        Store(path, read_only=True)
    assert path.read_bytes() == before


def test_damage_that_shows_later_is_an_error(path: Path) -> None:
    with Store(path) as store:
        pages = path.stat().st_size // PAGE
        overwrite(path, 2 * PAGE, pages * PAGE)
        assert store._database._db is not None
        store._database._db.execute("PRAGMA shrink_memory")  # read again from the file
        with pytest.raises(ProfileError, match="damaged") as caught:
            store.items()
    assert "close it" in str(caught.value.remedy)


def test_no_repair_while_another_store_is_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_S", 0.1)
    with Store(path) as first:
        first._database.run(lambda db: None)
        before = path.read_bytes()
        path.write_bytes(b"\xa5" * 64 + before[64:])
        with pytest.raises(ProfileError, match="a damaged database is still open") as caught:
            Store(path)
        assert "end the other processes" in str(caught.value.remedy)
    assert sorted(p.name for p in path.parent.glob("*.damaged-*")) == []
    with pytest.warns(RuntimeWarning, match="damaged-1"):
        Store(path).close()


def test_processes_repair_once(path: Path) -> None:
    pages = path.stat().st_size // PAGE
    overwrite(path, pages // 2 * PAGE, (pages // 2 + 1) * PAGE)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    openers = [context.Process(target=open_store, args=(path, barrier)) for _ in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(timeout=25)
        assert opener.exitcode == 0
    assert not path.with_name("m.sqlite.damaged-2").exists()
    with Store(path) as store:
        rows = dict(store.items())
    assert rows.pop(key(-1)) == measured()
    assert_true_rows(rows)
    assert len(rows) >= ROWS * 0.9

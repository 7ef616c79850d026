"""Disks that are full and databases that are only read."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from devices import FEW_ROUNDS, Scripted, tasks
from measurements import key, measured

from mpq_compile.cost.measure import measure
from mpq_compile.cost.store import Store
from mpq_compile.errors import ProfileError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.sqlite"


def assert_sound(path: Path) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_full_database(path: Path) -> None:
    with Store(path) as store:
        store.put(key(), measured())
        assert store._database._db is not None
        pages = store._database._db.execute("PRAGMA page_count").fetchone()[0]
        store._database._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(ProfileError, match="cannot be written") as caught:
            store.put_many((key(n), measured()) for n in range(1000))
        assert "full" in str(caught.value.found)
        assert "free some room" in str(caught.value.remedy)
        assert store.items() == [(key(), measured())]
    assert_sound(path)


def test_a_full_disk_in_the_middle_of_profiling(path: Path, tmp_path: Path) -> None:
    """Another process may write no file beyond a size, and measures until that is reached."""
    Store(path).close()
    size = path.stat().st_size
    program = f"""
        import resource
        from pathlib import Path
        from devices import Scripted, tasks
        from mpq_compile.cost.measure import measure
        from mpq_compile.cost.rounds import Precision
        from mpq_compile.cost.store import Store
        from mpq_compile.errors import ProfileError

        device, endless = Scripted(), Precision(relative=-1.0, least=10**6, kernel_s=1e9)
        with Store(Path({str(path)!r})) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, ({size} * 8, {size} * 8))
            try:
                measure(tasks(), store, device, precision=endless)
            except ProfileError as error:
                print(error)
    """
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": f"{folder}:{folder.parents[1]}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "the database cannot be written" in done.stdout
    assert_sound(path)
    with Store(path) as store:
        rounds = [g.samples for g in store.generations()]
        assert sum(rounds) > 0
        assert measure(tasks(), store, Scripted(), precision=FEW_ROUNDS)


def test_a_database_that_is_only_read(path: Path) -> None:
    with Store(path) as store:
        known = measure(tasks(2), store, Scripted(), precision=FEW_ROUNDS)
    with Store(path, read_only=True) as store:
        assert measure(tasks(2), store, Scripted(), precision=FEW_ROUNDS, again=True) == known
        before = store.items()
        with pytest.raises(ProfileError, match="lacks measurements and is read-only") as caught:
            measure(tasks(3), store, Scripted())
        assert (caught.value.expected, caught.value.found) == (
            "measurements of 3 kernels",
            "2 of them",
        )
        assert store.items() == before

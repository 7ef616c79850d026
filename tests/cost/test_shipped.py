"""Measurements that come with the package: valid, used where their whole key agrees, and after the
user's own."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from measurements import key, measured

from mpq_compile.cost.jsonl import read_jsonl, write_jsonl
from mpq_compile.cost.measurement import MeasurementKey
from mpq_compile.cost.shipped import SHIPPED_DIR, SUFFIX
from mpq_compile.cost.store import Store
from mpq_compile.errors import ProfileError

SHIPPED = [key(1), key(2)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped measurements with one file."""
    place = tmp_path / "measurements"
    place.mkdir()
    write_jsonl(place / f"{key().device}{SUFFIX}", [(k, measured(7.0)) for k in SHIPPED])
    monkeypatch.delenv("MPQ_SHIPPED")
    return place


@pytest.fixture
def store(tmp_path: Path, folder: Path):
    with Store(tmp_path / "db.sqlite", shipped=folder) as opened:
        yield opened


def test_shipped_rows_stand_in_for_what_the_database_lacks(store: Store) -> None:
    assert store.get_many([key(0), *SHIPPED]) == {k: measured(7.0) for k in SHIPPED}
    assert store.get(key(0)) is None


def test_the_users_row_comes_first_even_where_it_is_older(store: Store) -> None:
    own = replace(measured(3.0), time="2001-01-01T00:00:00+00:00")
    assert store.put(key(1), own)
    assert store.get_many(SHIPPED) == {key(1): own, key(2): measured(7.0)}
    assert store.rows_on(key().device, ("conv2d",)) == {key(1): own, key(2): measured(7.0)}


@pytest.mark.parametrize("part", ["device", "toolchain", "kernels", "shape", "candidate"])
def test_a_row_of_another_key_is_never_used(store: Store, part: str) -> None:
    assert store.get(replace(key(1), **{part: "another"})) is None


def test_they_are_not_rows_of_the_database(store: Store, tmp_path: Path) -> None:
    assert len(store) == 0 and store.items() == []
    assert store.export_jsonl(tmp_path / "export.jsonl") == 0
    assert store.rows_on(key().device, ("linear",)) == {}
    assert store.rows_on("another", ("conv2d",)) == {}


def test_they_can_be_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPQ_SHIPPED", "0")
    assert store.get_many(SHIPPED) == {}
    assert store.rows_on(key().device, ("conv2d",)) == {}


def test_a_device_is_no_path(store: Store, folder: Path) -> None:
    """Accelerators are named by their authors."""
    (folder / "below").mkdir()
    strange = replace(key(1), device="below/device")
    write_jsonl(folder / "below" / f"device{SUFFIX}", [(strange, measured())])
    assert store.get(strange) is None


def test_compressed_exports_are_the_same_rows(tmp_path: Path) -> None:
    rows = [(key(n), measured(float(n + 1))) for n in range(20)]
    plain, packed = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz"
    write_jsonl(plain, rows)
    write_jsonl(packed, rows)
    assert read_jsonl(packed) == read_jsonl(plain) == rows
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    again = tmp_path / "again.jsonl.gz"
    write_jsonl(again, rows)
    assert again.read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rows.jsonl.gz"
    write_jsonl(path, [(key(n), measured()) for n in range(20)])
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-20]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"{}\n")
    path.write_bytes(content)
    with pytest.raises(ProfileError, match="not an export"):
        read_jsonl(path)


def test_every_shipped_file_is_valid() -> None:
    """Each holds rows of one device, toolchain and set of kernels; its name is the device."""
    for path in SHIPPED_DIR.glob("*"):
        assert path.name.endswith(SUFFIX), path
        rows = read_jsonl(path)
        origins = {(k.device, k.toolchain, k.kernels) for k, _ in rows}
        assert len(origins) == 1 and len({k for k, _ in rows}) == len(rows)
        assert next(iter(origins))[0] == path.name.removesuffix(SUFFIX)


def test_what_no_kernel_takes_part_in_is_never_stale(tmp_path: Path) -> None:
    """Times of an accelerator's class stay where stale ones are deleted."""
    accelerator = replace(key(3), toolchain="none", kernels="none")
    with Store(tmp_path / "db.sqlite") as store:
        for k in (key(1), replace(key(2), kernels="old"), accelerator):
            store.put(k, measured())
        deleted = store.prune_stale("toolchain", "kernels")
        assert [g.kernels for g in deleted] == ["old"]
        left: set[MeasurementKey] = {k for k, _ in store.items()}
        assert left == {key(1), accelerator}
        assert all(g.is_current("toolchain", "kernels") for g in store.generations())

"""Measurements: what is valid, and the way to JSON lines and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measurements import key, measured

from mpq_compile.cost.measurement import (
    Measurement,
    MeasurementKey,
    from_record,
    to_record,
    utc_now,
)
from mpq_compile.cost.store import Store
from mpq_compile.errors import ProfileError


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"count": 1.0},
        {"count": True},
        {"count": 10**30},
        {"median_us": float("nan")},
        {"mean_us": float("inf")},
        {"mean_us": 10**400},
        {"variance": -0.1},
        {"min_us": "5"},
        {"min_us": 6.0},
        {"clock_mhz": -1.0},
        {"time": "2025-01-31T12:00:00"},
        {"time": "2025-01-31T12:00:00+02:00"},
        {"time": "yesterday"},
        {"time": None},
    ],
    ids=str,
)
def test_what_is_not_a_measurement(change: dict[str, object]) -> None:
    with pytest.raises(ProfileError, match=f"not a measurement: {next(iter(change))}"):
        dataclasses.replace(measured(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", None, 3, "two\nlines", "\ud800"])
def test_what_is_not_a_key(value: object) -> None:
    with pytest.raises(ProfileError, match="shape"):
        dataclasses.replace(key(), shape=value)  # type: ignore[arg-type]


def test_now_is_a_valid_time() -> None:
    newer = dataclasses.replace(measured(), time=utc_now())
    assert newer.supersedes(measured())
    assert not measured().supersedes(newer)


def test_spellings_of_utc_are_one_time() -> None:
    values = [
        dataclasses.replace(measured(), time=f"2025-01-31T12:00:00{tail}")
        for tail in ("Z", "+00:00", ".000Z")
    ]
    assert not any(a.supersedes(b) for a in values for b in values)


amounts = st.floats(min_value=0, max_value=1e18)
measurements = st.builds(
    lambda times, **rest: Measurement(min_us=min(times), median_us=max(times), **rest),
    times=st.tuples(amounts, amounts),
    count=st.integers(1, 10**18),
    mean_us=amounts,
    variance=amounts,
    clock_mhz=st.none() | amounts,
    time=st.datetimes().map(lambda t: t.isoformat() + "Z"),
)
words = st.text(alphabet="abc019_-×é 漢", min_size=1, max_size=8)
keys = st.builds(
    MeasurementKey,
    device=words,
    toolchain=words,
    kernels=words,
    operator=words,
    shape=words,
    candidate=words,
)


@given(keys, measurements)
def test_records_round_trip(key: MeasurementKey, value: Measurement) -> None:
    assert from_record(json.loads(json.dumps(to_record(key, value)))) == (key, value)


@given(measurements, measurements)
def test_one_of_two_supersedes(first: Measurement, second: Measurement) -> None:
    assert not (first.supersedes(second) and second.supersedes(first))
    assert not first.supersedes(first)


def test_export_import_round_trip(tmp_path: Path) -> None:
    rows = [(key(n, candidate), measured(n + 1.0)) for n in range(9) for candidate in ("é", "fp32")]
    with Store(tmp_path / "a.sqlite") as store:
        store.put_many(rows)
        assert store.export_jsonl(tmp_path / "a.jsonl") == len(rows)
        exported = store.items()
    with Store(tmp_path / "b.sqlite") as store:
        assert store.import_jsonl(tmp_path / "a.jsonl") == len(rows)
        assert store.import_jsonl(tmp_path / "a.jsonl") == 0
        assert store.items() == exported
        store.export_jsonl(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert sorted(p.suffix for p in tmp_path.glob("*.jsonl*")) == [".jsonl", ".jsonl"]


def test_import_keeps_what_is_newer(tmp_path: Path) -> None:
    with Store(tmp_path / "m.sqlite") as store:
        store.put(key(), measured(second=1))
        store.export_jsonl(tmp_path / "old.jsonl")
        store.put(key(), measured(9.0, second=2))
        assert store.import_jsonl(tmp_path / "old.jsonl") == 0
        assert store.get(key()) == measured(9.0, second=2)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "null",
        "{}",
        '{"version": 1}',
        '{"version": 2}',
        "[" * 100_000,
        json.dumps({"version": 1, **to_record(key(), measured()), "extra": 1}),
        json.dumps({"version": 1, **to_record(key(), measured()), "median_us": float("nan")}),
        json.dumps({"version": 1, **to_record(key(), measured()), "shape": "\ud800"}),
    ],
    ids=lambda line: line[:30],
)
def test_a_bad_line_is_named_and_nothing_imported(tmp_path: Path, line: str) -> None:
    good = json.dumps({"version": 1, **to_record(key(), measured())})
    path = tmp_path / "in.jsonl"
    path.write_text(f"{good}\n\n{line}\n")
    with Store(tmp_path / "m.sqlite") as store:
        with pytest.raises(ProfileError) as caught:
            store.import_jsonl(path)
        assert caught.value.where == f"{path}:3"
        assert caught.value.expected and caught.value.found and caught.value.remedy
        assert len(store) == 0


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with Store(tmp_path / "m.sqlite") as store:
        with pytest.raises(ProfileError, match="no such file"):
            store.import_jsonl(tmp_path / "absent.jsonl")
        with pytest.raises(ProfileError, match="cannot be written"):
            store.export_jsonl(tmp_path / "no" / "such" / "out.jsonl")

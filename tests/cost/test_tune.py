"""Tuning: what is decided follows from rows of the database; who builds uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.store import Store
from mpq_compile.cost.tune import CHECK, TRIAL, Schedules, search_of, tune, tuning_budget_s
from mpq_compile.errors import DeviceError
from mpq_compile.kernels.tier import host_tiers
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.pipeline import assign_session
from mpq_compile.runtime.device import LocalDevice
from mpq_compile.session import Session

CONV = ConvWorkload(
    batch=1, height=12, width=20, in_channels=8, out_channels=40, kernel=(3, 3),
    padding=(1, 1, 1, 1),
)  # fmt: skip
DEVICE = LocalDevice()


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "db.sqlite"))
    monkeypatch.setenv("MPQ_TUNE", "1")
    # Tiles of AMX leave two choices of CONV, and no border before 40 channels.
    tiers = [tier.name for tier in host_tiers() if tier.dot != "amx"]
    monkeypatch.setenv("MPQ_TIER", tiers[0])
    return tmp_path / "db.sqlite"


def row(us: float) -> Measurement:
    return Measurement(
        count=7, median_us=us, mean_us=us, variance=0.0, min_us=us, clock_mhz=None,
        time="2025-01-31T12:00:00+00:00",
    )  # fmt: skip


def rows_of(trials: list[float], checks: tuple[float, float] | None = None) -> dict:
    """Return rows in which choice i took ``trials[i]`` µs (the last value for all others), and
    the model's and the fastest then took ``checks``."""
    search = search_of(CONV, DEVICE)
    times = [*trials, *[trials[-1]] * (len(search.choices) - len(trials))]
    rows = {key: row(us) for key, us in zip(search.trials, times, strict=True)}
    if checks is not None:
        fastest = times.index(min(times))
        rows[search.checks[0]], rows[search.checks[fastest]] = map(row, checks)
    return rows


def decided(rows: dict[MeasurementKey, Measurement]) -> int | None:
    """Return the number of the chosen schedule, or None where nothing is decided."""
    search = search_of(CONV, DEVICE)
    choice = search.decision(rows)
    return None if choice is None else list(search.choices).index(choice)


def test_a_confirmed_gain_is_taken():
    assert decided(rows_of([10.0, 8.0, 9.0], (10.0, 9.0))) == 1


def test_a_gain_that_is_not_confirmed_is_not():
    assert decided(rows_of([10.0, 8.0, 9.0], (10.0, 9.8))) == 0


def test_a_small_gain_needs_no_confirmation():
    assert decided(rows_of([10.0, 9.8, 9.9])) == 0


def test_nothing_is_decided_by_half():
    assert decided(rows_of([10.0, 8.0])) is None
    complete = rows_of([10.0, 8.0, 9.0], (10.0, 9.0))
    complete.pop(next(iter(complete)))
    assert decided(complete) is None


def test_one_schedule_needs_no_measuring():
    workload = LinearWorkload(rows=1, in_features=32, out_features=8)
    with Store() as store:
        found = tune([workload], store, DEVICE, 0.0)
        assert list(found) == [workload.key]
        assert len(store) == 0


def test_search_is_stored_and_done_once(database: Path, tmp_path: Path):
    with Store() as store:
        assert tune([CONV], store, DEVICE, 0.0) == {}
        first = tune([CONV, CONV], store, DEVICE, 1e-6 + 60)
        assert list(first) == [CONV.key]
        operators = [key.operator for key, _ in store.items()]
        offered = search_of(CONV, DEVICE).choices
        assert operators.count(TRIAL) == len(offered) > 1
        assert operators.count(CHECK) in (0, 2)
        before = store.items()
        assert tune([CONV], store, DEVICE, 60) == first
        assert store.items() == before
        store.export_jsonl(tmp_path / "all.jsonl")
    with Store(tmp_path / "other.sqlite") as other:
        other.import_jsonl(tmp_path / "all.jsonl")
        assert tune([CONV], other, DEVICE, 0.0) == first
        chosen = Schedules.read(other, DEVICE)(CONV)
    assert chosen == (None if first[CONV.key] == offered[0] else first[CONV.key])


def prefer_another(workloads: list) -> Callable[[object], str]:
    """Store rows by which each workload's last schedule is the fastest; return their texts."""
    texts, rows = {}, {}
    for workload in workloads:
        search = search_of(workload, DEVICE)
        last = len(search.choices) - 1
        rows |= {key: row(10.0) for key in search.trials}
        rows |= {search.trials[last]: row(5.0), search.checks[0]: row(10.0)}
        rows[search.checks[last]] = row(5.0)
        texts[workload.key] = str(search.choices[last])
    with Store() as store:
        store.put_many(rows.items())
    return lambda workload: texts[workload.key]


def session(**options: object) -> Session:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 40, 3, padding=1), nn.ReLU(), nn.Conv2d(40, 16, 3, padding=1)
    ).eval()
    x = torch.randn(2, 8, 12, 20)
    return Session(model, x[:1], [x], candidates=["w8a8"], **options)  # type: ignore[arg-type]


def test_a_network_runs_what_was_decided():
    text = prefer_another([CONV])
    tuned = assign_session(session(), "w8a8")
    # It stores a border for the next convolution, and has the schedule it has alone.
    kernel = replace(CONV, border=(1, 1, 1, 1)).key
    assert [row.kernel for row in tuned.audit][0] == f"{kernel}/{text(CONV)}"
    plain = assign_session(session(tuned=False), "w8a8")
    assert [row.kernel for row in plain.audit][0] == kernel
    x = torch.randn(1, 8, 12, 20)
    assert torch.equal(tuned(x), tuned.reference(x))
    assert torch.equal(tuned(x), plain(x))


def test_costs_are_those_of_the_kernels_that_run(monkeypatch: pytest.MonkeyPatch):
    text = prefer_another([CONV])
    monkeypatch.setenv("MPQ_TUNE", "1e-6")
    with_choices = session()
    assert with_choices.costs
    with Store() as store:
        shapes = [key.shape for key, _ in store.items() if key.operator == "conv2d"]
        network = [key.shape for key, _ in store.items() if key.operator == "network"]
    assert f"{CONV.key}/{text(CONV)}" in shapes
    assert CONV.key not in shapes
    assert network[0].startswith(f"{with_choices.digest()}/")


def test_off_reads_and_stores_nothing(monkeypatch: pytest.MonkeyPatch):
    prefer_another([CONV])
    monkeypatch.setenv("MPQ_TUNE", "0")
    assert session().costing.choice_of(CONV) is None
    with Store() as store:
        before = len(store)
        session().costing.tune(store)
        assert len(store) == before


def test_a_store_that_is_only_read(database: Path):
    prefer_another([CONV])
    other = replace(CONV, in_channels=9)
    with Store(read_only=True) as store:
        before = len(store)
        assert list(tune([CONV, other], store, DEVICE, 60)) == [CONV.key]
        assert len(store) == before


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_what_is_no_time(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MPQ_TUNE", text)
    with pytest.raises(DeviceError, match="MPQ_TUNE"):
        tuning_budget_s()

"""``mpq.profile``: what it measures is all that planning needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import mpq_compile as mpq
from mpq_compile import anchors
from mpq_compile.cost.measurement import Measurement, MeasurementKey
from mpq_compile.cost.store import Store
from mpq_compile.costing import Costing
from mpq_compile.session import Session

NAMES = ["fp32", "w8a8"]


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "db.sqlite"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "db.sqlite"


def model() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    return layers.eval(), torch.randn(4, 3, 8, 8)


def test_plans_after_it_measure_nothing(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = model()
    first = mpq.profile(module, x[:1], [x], candidates=NAMES)
    assert first.complete and first.new == first.needed > 0
    assert first.database == database
    assert first.half_width is not None
    with Store() as store:
        before = store.items()
    # Tuning has not decided everything, and planning leaves it at that.
    monkeypatch.setenv("MPQ_TUNE", "20")
    for size in (0.01, 0.02):
        mpq.plan(module, x[:1], [x], budget=mpq.Budget(size_mb=size), candidates=NAMES)
    with Store() as store:
        assert store.items() == before
    monkeypatch.setenv("MPQ_TUNE", "0")
    assert mpq.profile(module, x[:1], [x], candidates=NAMES).needed == first.needed


def test_networks_that_found_the_machine_unusual_are_counted_and_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, x = model()
    monkeypatch.setattr(anchors, "settled", lambda _: False)
    first = mpq.profile(module, x[:1], [x], candidates=["w8a8"])
    assert first.complete and first.unsettled >= 1
    before = networks()
    assert len(before) == 1 and not any(value.settled for value in before.values())
    monkeypatch.setattr(anchors, "settled", lambda _: True)
    second = mpq.profile(module, x[:1], [x], candidates=["w8a8"])
    assert second.needed == first.needed and second.new >= 1
    assert networks().keys() == before.keys()
    assert all(value.settled for value in networks().values())


def networks() -> dict[MeasurementKey, Measurement]:
    with Store(read_only=True) as store:
        return {key: value for key, value in store.items() if key.operator == "network"}


def test_a_first_plan_tunes(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = model()
    monkeypatch.setenv("MPQ_TUNE", "1e-6")
    session = Session(module, x[:1], [x], candidates=NAMES)
    assert session.costs.costs
    monkeypatch.setattr(Costing, "tune", lambda *_: pytest.fail("tuned again"))
    assert Session(module, x[:1], [x], candidates=NAMES).costs.costs


def test_short_runs_get_there_too() -> None:
    """Each run measures something, however short its time; then planning lacks nothing."""
    module, x = model()
    runs = []
    for _ in range(30):
        runs.append(mpq.profile(module, x[:1], [x], candidates=["w8a8"], budget_s=1e-9))
        if runs[-1].complete:
            break
    assert not runs[0].complete
    assert runs[-1].complete
    with Store() as store:
        before = store.items()
    mpq.plan(module, x[:1], [x], budget=mpq.Budget(size_mb=0.01), candidates=["w8a8"])
    with Store() as store:
        assert store.items() == before


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time(seconds: float) -> None:
    module, x = model()
    with pytest.raises(mpq.PlanError, match="positive number"):
        mpq.profile(module, x[:1], [x], budget_s=seconds)


def test_an_analytic_target_needs_no_measuring() -> None:
    module, x = model()
    with pytest.raises(mpq.ProfileError, match="nothing to measure"):
        mpq.profile(module, x[:1], [x], target="bit_serial")

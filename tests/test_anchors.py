"""Whole networks that the latency model is anchored on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

import mpq_compile as mpq
from mpq_compile import anchors
from mpq_compile.anchors import MIXED, _occasions, anchor_assignments, network_anchors
from mpq_compile.cost.measurement import Measurement
from mpq_compile.cost.store import Store
from mpq_compile.session import Session


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests measured must not be known here."""
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "db.sqlite"))


def session(*candidates: str) -> Session:
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 3, padding=1)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), shared, nn.ReLU(), shared)
    x = torch.randn(2, 3, 8, 8)
    return Session(layers.eval(), x[:1], [x], candidates=candidates)


def test_uniform_and_mixed_assignments() -> None:
    found = session("fp32", "w8a8", "w6a8")
    assignments = anchor_assignments(found, found.costing.measured.costs)
    # On every tier w6a8 runs the kernels of w8a8: the same network.
    assert list(assignments) == ["fp32", "w8a8", *(f"mixed{n}" for n in range(MIXED))]
    for assignment in assignments.values():
        tied = {
            assignment[s.id] for s in found.network.sites if s.group == found.network.sites[1].group
        }
        assert len(tied) == 1
    assert anchor_assignments(found, found.costing.measured.costs) == assignments


def test_one_format_needs_no_mixed_networks() -> None:
    found = session("w8a8", "w6a8")
    assert list(anchor_assignments(found, found.costing.measured.costs)) == ["w8a8"]


def test_they_are_measured_once_and_may_be_left_out() -> None:
    found = session("w8a8")
    costs = found.costing.measured.costs
    with Store() as store:
        assert network_anchors(found, costs, store, measured=False) == []
        first = network_anchors(found, costs, store)
        assert len(first) == 1 and first[0].latency_us > 0
        assert network_anchors(found, costs, store) == first
        assert network_anchors(found, costs, store, measured=False) == first


def test_other_code_that_lowers_makes_them_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = session("w8a8")
    costs = found.costing.measured.costs
    with Store() as store:
        network_anchors(found, costs, store)
        monkeypatch.setattr(anchors, "lowering_hash", lambda: "other")
        assert network_anchors(found, costs, store, measured=False) == []


def test_those_of_an_unusual_machine_say_so_until_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = session("w8a8")
    costs = found.costing.measured.costs
    with Store() as store:
        monkeypatch.setattr(anchors, "settled", lambda _: False)
        (first,) = network_anchors(found, costs, store)
        assert not first.settled
        assert network_anchors(found, costs, store) == [first]
        plan = found.solve(mpq.Budget(size_mb=1.0))
        assert any("1 of the 1 networks" in note and "mpq profile" in note for note in plan.notes)
        monkeypatch.setattr(anchors, "settled", lambda _: True)
        (second,) = network_anchors(found, costs, store, again=True)
        assert second.settled and second != first
        assert network_anchors(found, costs, store, again=True) == [second]
    found.costing.forget()
    assert not any("not as usual" in n for n in found.solve(mpq.Budget(size_mb=1.0)).notes)


def test_occasions_are_numbered_by_time() -> None:
    begin = datetime(2025, 1, 31, 12, 0, tzinfo=UTC)

    def at(seconds: float, settled: bool = True) -> Measurement:
        moment = (begin + timedelta(seconds=seconds)).isoformat()
        return Measurement(
            count=1,
            median_us=1.0,
            mean_us=1.0,
            variance=0.0,
            min_us=1.0,
            clock_mhz=None,
            time=moment,
            settled=settled,
        )

    measured = {"late": at(90_000), "first": at(0), "same": at(20), "later": at(90_001)}
    assert _occasions(measured) == {"first": 0, "same": 0, "late": 1, "later": 1}
    measured = {"busy": at(0, settled=False), "quiet": at(20), "again": at(30, settled=False)}
    assert _occasions(measured) == {"busy": 0, "quiet": 1, "again": 2}
    assert _occasions({}) == {}

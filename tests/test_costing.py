"""What candidates cost on a target: estimates where nothing was measured, and learning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import mpq_compile as mpq
from mpq_compile.cost.latency import Observation
from mpq_compile.cost.measure import measure
from mpq_compile.cost.store import Store
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.runtime.device import LocalDevice
from mpq_compile.runtime.kernel_timing import Task
from mpq_compile.session import Session

NAMES = ["fp32", "w8a8"]


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests measured must not be known here."""
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "db.sqlite"))


def model() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    )
    return layers.eval(), torch.randn(4, 3, 8, 8)


def session(measure_s: float | None = None) -> Session:
    module, x = model()
    return Session(module, x[:1], [x], candidates=NAMES, measure_s=measure_s)


def measured_elsewhere() -> list[Task]:
    """Kernels of other shapes than the model's."""
    convs = [
        ConvWorkload(
            batch=1, height=size, width=size, in_channels=channels, out_channels=16,
            kernel=(3, 3), compute=compute, out=out,
        )
        for size in (5, 9)
        for channels in (4, 8, 16)
        for compute, out in (("int8", "u8"), ("fp32", "fp32"))
    ]  # fmt: skip
    linears = [
        LinearWorkload(rows=1, in_features=size, out_features=8, compute=compute, out="fp32")
        for size in (32, 64, 96, 160, 192, 256)
        for compute in ("int8", "fp32")
    ]
    return [
        *(Task(operator="conv2d", workload=workload) for workload in convs),
        *(Task(operator="linear", workload=workload) for workload in linears),
    ]


def test_nothing_is_estimated_from_nothing() -> None:
    with pytest.raises(mpq.ProfileError, match="too few measurements"):
        _ = session(measure_s=0.0).costs


def test_what_was_not_measured_is_estimated_and_says_so() -> None:
    with Store() as store:
        measure(measured_elsewhere(), store, LocalDevice())
        before = {key for key, _ in store.items() if key.operator != "network"}
    module, x = model()
    plan = mpq.plan(module, x[:1], [x], candidates=NAMES, measure_s=0.0)
    assert {row["latency_source"] for row in plan.table} == {"estimated"}
    assert any("3 of 3 sites is estimated" in note for note in plan.notes)
    assert mpq.Plan.from_json(plan.to_json()) == plan
    with Store() as store:
        kernels = {key for key, _ in store.items() if key.operator != "network"}
    assert kernels == before
    # Measured after all, the same sites are no longer estimated and the interval is narrower.
    known = mpq.plan(module, x[:1], [x], candidates=NAMES)
    assert {row["latency_source"] for row in known.table} == {"measured"}
    assert not any("estimated" in note for note in known.notes)


def test_a_measured_network_moves_predictions_until_forgotten() -> None:
    costing = session().costing
    names = {site: "fp32" for site in costing.table.costs}
    names[next(iter(names))] = "w8a8"
    before = costing.latency.predict(names)
    table = costing.table
    seen = Observation(
        assignment=names, latency_us=1.3 * before.mean_us, run=costing.latency.next_run
    )
    costing.learn(seen)
    after = costing.latency.predict(names)
    assert before.mean_us < after.mean_us < 1.31 * before.mean_us
    assert costing.table != table
    costing.forget()
    assert costing.latency.predict(names) == before
    assert costing.table == table


def test_predictions_are_within_the_budget_and_carry_an_interval() -> None:
    module, x = model()
    free = mpq.plan(module, x[:1], [x], candidates=NAMES)
    fast = mpq.plan(module, x[:1], [x], candidates=["w8a8"])
    assert free.predicted.latency_ms is not None and fast.predicted.latency_ms is not None
    limit = max(free.predicted.latency_ms, fast.predicted.latency_ms)
    plan = mpq.plan(module, x[:1], [x], candidates=NAMES, budget=mpq.Budget(latency_ms=limit))
    predicted = plan.predicted
    assert predicted.latency_ms_lower95 < predicted.latency_ms <= limit * (1 + 1e-9)
    assert predicted.latency_ms < predicted.latency_ms_upper95


def test_a_missing_folder_is_told_before_anything_takes_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MPQ_DB", str(tmp_path / "nowhere" / "db.sqlite"))
    no_model = object()  # refused, as soon as somebody looks at it
    with pytest.raises(mpq.ProfileError, match="folder of the database is missing"):
        mpq.plan(no_model, torch.zeros(1, 2), [torch.zeros(4, 2)])
    with pytest.raises(mpq.CaptureError):
        mpq.plan(no_model, torch.zeros(1, 2), [torch.zeros(4, 2)], target="bit_serial")
    module, x = model()
    mpq.assign(module, x[:1], [x], "w8a8", tuned=False)  # measures nothing

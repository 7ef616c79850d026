"""Trained networks on real data: the device equals the oracle, accuracy and size are as promised."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import real_data
import torch

import mpq_compile as mpq
from mpq_compile.pipeline import Session, assign_session, compile_session

pytestmark = pytest.mark.skipif(
    not real_data.DATA.is_dir(), reason=f"no real networks in {real_data.DATA} (set MPQ_DATA)"
)
# Samples on which the oracle, which is slow, is run in the default tests.
COMPARED = {"resnet20": 60, "resnet32": 60, "squeezenet": 12, "dscnn": 400}
CANDIDATES = ("w8a8", "w4a8")


@cache
def session_of(name: str) -> Session:
    net = real_data.NETS[name]()
    # Fifty samples give the same ranges for what is tested here, in less time.
    return Session(net.model, net.example, [net.calibration[:50]])


@cache
def network_of(name: str, candidate: str) -> mpq.CompiledNetwork:
    return assign_session(session_of(name), candidate)


def equal_samples(network: mpq.CompiledNetwork, name: str, count: int, batch: int = 20) -> int:
    """Count samples whose outputs agree bit for bit with the oracle's."""
    net, equal = real_data.NETS[name](), 0
    for start in range(0, count, batch):
        x = net.inputs(start, min(start + batch, count))
        same = network(x) == network.reference(x)
        equal += int(same.flatten(1).all(1).sum())
    return equal


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", COMPARED)
def test_device_equals_oracle(name: str, candidate: str) -> None:
    count = COMPARED[name]
    assert equal_samples(network_of(name, candidate), name, count) == count


@pytest.mark.slow
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", COMPARED)
def test_device_equals_oracle_on_everything(name: str, candidate: str) -> None:
    count = len(real_data.NETS[name]().labels)
    assert equal_samples(network_of(name, candidate), name, count) == count


@pytest.mark.parametrize(
    ("name", "count"), [("dscnn", 400), ("resnet20", 500), ("resnet32", 500)]
)
def test_w8a8_keeps_the_accuracy(name: str, count: int) -> None:
    net = real_data.NETS[name]()
    exact = real_data.correct(net.model, net, count)
    quantized = real_data.correct(network_of(name, "w8a8"), net, count)
    drop, error = real_data.paired_drop(exact, quantized)
    assert abs(drop) <= 2 * error


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_w8a8_keeps_the_accuracy_on_everything(name: str) -> None:
    net = real_data.NETS[name]()
    exact = real_data.correct(net.model, net)
    quantized = real_data.correct(network_of(name, "w8a8"), net)
    drop, error = real_data.paired_drop(exact, quantized)
    assert abs(drop) <= 2 * error


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", COMPARED)
def test_stored_size_is_that_of_the_bits(name: str, candidate: str) -> None:
    network = network_of(name, candidate)
    expected = sum(
        site.weight_count * int(candidate[1]) / 8 + 4 * site.out_channels
        for site in session_of(name).network.sites
    ) + sum(4 * site.shape[0] for site in network.manifest.sites.values() if site.has_bias)
    assert real_data.stored_bytes(network) == pytest.approx(expected)
    assert network.size_bytes == pytest.approx(expected, rel=0.02)
    assert network.plan.predicted.size_bytes == pytest.approx(expected, rel=0.02)


def test_audit_has_no_fallback() -> None:
    for name in COMPARED:
        audit = network_of(name, "w4a8").audit
        sites = {site.id for site in session_of(name).network.sites}
        assert {row.site for row in audit if row.requested != "float"} == sites
        assert {row.compute for row in audit if row.requested != "float"} == {"int8"}


def test_size_budget_mixes_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpq_compile.anchors.network_anchors", _no_anchors)
    net = real_data.NETS["resnet20"]()
    session = Session(
        net.model, net.example, [net.calibration[:32]], candidates=["w8a8", "w4a8", "w2a8"]
    )
    network = compile_session(session, mpq.Budget(size_mb=0.2), verify=False)
    assert network.size_bytes <= 0.2e6
    assert network.plan.predicted.size_bytes <= 0.2e6
    assert len(set(network.plan.assignment.values())) > 1
    x = net.inputs(0, 20)
    assert torch.equal(network(x), network.reference(x))
    exact, quantized = (real_data.correct(f, net, 200) for f in (net.model, network))
    assert np.mean(quantized) >= np.mean(exact) - 0.05


def _no_anchors(*_: Callable[..., object]) -> dict[str, float]:
    """Latency plays no part under a size budget, and timing whole networks takes long."""
    return {}

"""Trained networks on real data: the device equals the oracle; accuracy and size hold."""

from __future__ import annotations

from functools import cache

import pytest
import shared_nets
import torch

import mpq_compile as mpq
from mpq_compile.closed_loop import compile_session
from mpq_compile.pipeline import assign_session
from mpq_compile.session import Session

pytestmark = pytest.mark.skipif(
    not shared_nets.data_folder().is_dir(),
    reason=f"no networks in {shared_nets.data_folder()} (set MPQ_DATA)",
)
# Samples on which the oracle, which is slow, is run by default; and all there are.
COMPARED = {"resnet20": 12, "resnet32": 8, "squeezenet": 4, "dscnn": 50}
EVERYTHING = {"resnet20": 5000, "resnet32": 5000, "squeezenet": 400, "dscnn": 400}
CANDIDATES = ("w8a8", "w4a8")


@cache
def net_of(name: str) -> shared_nets.SharedNet:
    return shared_nets.load_net(name, EVERYTHING[name])


@cache
def session_of(name: str) -> Session:
    net = net_of(name)
    return Session(net.model, net.example, [net.calibration[:50]])


@cache
def network_of(name: str, candidate: str) -> mpq.CompiledNetwork:
    return assign_session(session_of(name), candidate)


def equal_samples(network: mpq.CompiledNetwork, images: torch.Tensor) -> int:
    """Count samples whose outputs agree bit for bit with the oracle's."""
    equal = 0
    for x in images.split(50):
        same = network(x) == network.reference(x)
        equal += int(same.flatten(1).all(1).sum())
    return equal


def drop_of(name: str, candidate: str, count: int) -> tuple[float, float]:
    """Return the drop of top-1 from float and its paired standard error, in %."""
    net, network = net_of(name), network_of(name, candidate)
    right = {}
    for label, run in (("float", net.model), ("quantized", network)):
        with torch.no_grad():
            scores = torch.cat([run(x).flatten(1) for x in net.images[:count].split(50)])
        right[label] = shared_nets.top1(scores, net.labels[:count])
    drop = 100 * float(right["float"].double().mean() - right["quantized"].double().mean())
    return drop, shared_nets.paired_standard_error(right["quantized"], right["float"])


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", COMPARED)
def test_device_equals_oracle(name: str, candidate: str) -> None:
    images = net_of(name).images[: COMPARED[name]]
    assert equal_samples(network_of(name, candidate), images) == len(images)


@pytest.mark.slow
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", EVERYTHING)
def test_device_equals_oracle_on_everything(name: str, candidate: str) -> None:
    images = net_of(name).images
    assert len(images) == EVERYTHING[name]
    assert equal_samples(network_of(name, candidate), images) == len(images)


@pytest.mark.parametrize(("name", "count"), [("dscnn", 400), ("resnet20", 500)])
def test_w8a8_keeps_the_accuracy(name: str, count: int) -> None:
    drop, error = drop_of(name, "w8a8", count)
    assert abs(drop) <= 2 * error


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERYTHING)
def test_w8a8_keeps_the_accuracy_on_everything(name: str) -> None:
    drop, error = drop_of(name, "w8a8", EVERYTHING[name])
    assert abs(drop) <= 2 * error


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("name", COMPARED)
def test_stored_size_is_that_of_the_bits(name: str, candidate: str) -> None:
    network = network_of(name, candidate)
    bits = mpq.Candidate.parse(candidate).weight_bits
    expected = sum(
        site.weight_count * bits / 8 + 4 * site.out_channels
        for site in session_of(name).network.sites
    ) + sum(4 * site.shape[0] for site in network.manifest.sites.values() if site.has_bias)
    assert network.size_bytes == pytest.approx(expected, rel=0.02)
    assert network.plan.predicted.size_bytes == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", COMPARED)
def test_every_site_runs_in_int8(name: str) -> None:
    rows = {row.site: row for row in network_of(name, "w4a8").audit if row.requested != "float"}
    assert set(rows) == {site.id for site in session_of(name).network.sites}
    assert {(row.requested, row.stored_bits, row.compute) for row in rows.values()} == {
        ("w4a8", 4, "int8")
    }


def test_size_budget_mixes_bits() -> None:
    net = net_of("dscnn")
    session = Session(net.model, net.example, [net.calibration[:32]], candidates=["w8a8", "w4a8"])
    network = compile_session(session, mpq.Budget(size_mb=0.02), verify=False)
    assert network.size_bytes <= 0.02e6
    assert network.plan.predicted.size_bytes <= 0.02e6
    assert set(network.plan.assignment.values()) == {"w8a8", "w4a8"}
    assert equal_samples(network, net.images[:50]) == 50

"""Every aarch64 tier over RPC on an emulated device: exact kernels, networks equal to their oracle.

    scripts/aarch64_device.py setup && pytest -m emulated

``MPQ_SWEEP_CASES`` is the number of random matrix multiplies on each tier (12). Emulation shows
correctness only: nothing is timed but to see that timing works.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from emulated_device import SCRIPT, not_set_up
from farm import Farm, farm
from operator_nets import CASES
from test_random_sweep import random_workload
from torch.utils import _pytree as pytree

import mpq_compile as mpq
from mpq_compile.capture import capture
from mpq_compile.cost.exactness import check_exact
from mpq_compile.kernels.elementwise_workload import ConvertWorkload, QuantizeRowsWorkload
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload
from mpq_compile.passes.network import prepare
from mpq_compile.runtime.kernel_timing import Task
from mpq_compile.runtime.remote import RpcDevice, rpc_device
from mpq_compile.runtime.rpc_address import Address

COUNT = int(os.environ.get("MPQ_SWEEP_CASES", "12"))

pytestmark = pytest.mark.emulated


@dataclass(frozen=True, kw_only=True)
class Emulated:
    """A CPU model of QEMU's, the tier that it is asked to run, and how that is forced."""

    cpu: str
    tier: str
    forced: bool = False


DEVICES = (
    Emulated(cpu="max", tier="neon_i8mm_bf16"),
    Emulated(cpu="max", tier="neon_i8mm", forced=True),
    Emulated(cpu="neoverse-n1", tier="neon"),
    Emulated(cpu="cortex-a57", tier="generic"),
)
WORKLOADS = {
    "conv2d": ConvWorkload(
        batch=1, height=9, width=11, in_channels=19, out_channels=21, kernel=(3, 3),
        padding=(1, 1, 1, 1), residual="u8",
    ),
    "point": ConvWorkload(
        batch=2, height=7, width=5, in_channels=64, out_channels=48, kernel=(1, 1), out="fp32"
    ),
    "depthwise": ConvWorkload(
        batch=1, height=12, width=10, in_channels=36, out_channels=36, kernel=(3, 3),
        stride=(2, 2), padding=(1, 1, 1, 1), groups=36,
    ),
    "grouped": ConvWorkload(
        batch=1, height=8, width=8, in_channels=24, out_channels=30, kernel=(3, 3), groups=3
    ),
    "linear": LinearWorkload(rows=37, in_features=96, out_features=50),
    "rows_of_their_own_scale": LinearWorkload(
        rows=5, in_features=96, out_features=50, row_scales=True, out="fp32"
    ),
    "gemv_w8": LinearWorkload(rows=1, in_features=300, out_features=130),
    "gemv_w4": LinearWorkload(rows=1, in_features=256, out_features=130, weight_bits=4),
    "gemv_w4_groups": LinearWorkload(
        rows=2, in_features=256, out_features=130, weight_bits=4, group_size=64
    ),
    "gemv_w2": LinearWorkload(rows=3, in_features=256, out_features=130, weight_bits=2),
    "weight_only_w4": LinearWorkload(
        rows=1, in_features=256, out_features=130, weight_bits=4, compute="weight_only", out="bf16"
    ),
    "conv2d_bf16": ConvWorkload(
        batch=1, height=9, width=11, in_channels=19, out_channels=21, kernel=(3, 3),
        compute="bf16", out="bf16",
    ),
    "to_codes": ConvertWorkload(size=5001, source="fp32", target="u8"),
    "quantize_rows": QuantizeRowsWorkload(rows=7, features=130),
}  # fmt: skip


@pytest.fixture(scope="module")
def servers() -> Iterator[Farm]:
    """A tracker to which devices are added."""
    reason = not_set_up()
    if reason:
        pytest.skip(reason)
    with farm() as made:
        yield made


@pytest.fixture(scope="module", params=DEVICES, ids=lambda device: device.tier)
def device(servers: Farm, request: pytest.FixtureRequest) -> Iterator[RpcDevice]:
    """A device of each tier, one after the other."""
    emulated: Emulated = request.param
    program = (str(SCRIPT), "serve", "--cpu", emulated.cpu)
    environment = {"MPQ_TIER": emulated.tier} if emulated.forced else {}
    server = servers.start(emulated.tier, *program, **environment)
    servers.wait_for(emulated.tier, server)
    found = rpc_device(Address.parse(servers.target(emulated.tier)))
    assert (found.tier.name, found.tier.triple) == (emulated.tier, "aarch64-linux-gnu")
    yield found
    found.close()
    server.kill()


@pytest.mark.parametrize("name", WORKLOADS)
def test_kernels(device: RpcDevice, name: str) -> None:
    tasks = [Task(operator=name, workload=WORKLOADS[name])]
    check_exact(zip(tasks, device.kernels(tasks), strict=True), device.name)


def test_random_matrix_multiplies(device: RpcDevice) -> None:
    drawn = [random_workload(np.random.default_rng(seed)) for seed in range(COUNT)]
    tasks = [Task(operator=f"seed {seed}", workload=w) for seed, w in enumerate(drawn)]
    check_exact(zip(tasks, device.kernels(tasks), strict=True), device.name)


def assert_equals_its_oracle(name: str, candidates: tuple[str, ...], target: str) -> None:
    """Build a network of the battery whose sites take turns with the candidates, and run it."""
    case = CASES[name]
    sites = prepare(capture(case.model(), case.inputs(2))).sites
    turns = {site.id: candidates[i % len(candidates)] for i, site in enumerate(sites)}
    network = mpq.assign(case.model(), case.inputs(2), [case.inputs(8)], turns, target=target)
    assert {row.compute for row in network.audit} == {"int8"}
    for seed in range(1, 4):
        inputs = case.inputs(2, seed=seed)
        pairs = zip(
            pytree.tree_leaves(network(*inputs)),
            pytree.tree_leaves(network.reference(*inputs)),
            strict=True,
        )
        assert all(torch.equal(found, expected) for found, expected in pairs)


@pytest.mark.parametrize(
    "candidates", [("w8a8",), ("w4a8",), ("w8a8", "w4a8", "w6a8", "w2a8")], ids="-".join
)
def test_a_network_bit_for_bit(device: RpcDevice, candidates: tuple[str, ...]) -> None:
    assert_equals_its_oracle("mobile", candidates, device.name)


@pytest.mark.parametrize("name", ["convolutions", "two_inputs", "concats", "pools", "products"])
def test_other_networks_bit_for_bit(device: RpcDevice, name: str) -> None:
    assert_equals_its_oracle(name, ("w8a8", "w4a8"), device.name)


def test_float_formats_between_integer_sites(device: RpcDevice) -> None:
    """The device is held against the oracle as each network is built: 40 dB with float parts."""
    case = CASES["mobile"]
    sites = prepare(capture(case.model(), case.inputs(2))).sites
    names = ("w8a8", "bf16", "w4a8", "fp32")
    turns = {site.id: names[i % len(names)] for i, site in enumerate(sites)}
    mpq.assign(case.model(), case.inputs(2), [case.inputs(8)], turns, target=device.name)


def test_timing_works_there(device: RpcDevice) -> None:
    case = CASES["tied"]
    network = mpq.assign(case.model(), case.inputs(2), [case.inputs(8)], "w8a8", target=device.name)
    timings = device.time_networks([network.folder], blocks=1)
    assert min(timings.latencies_ms[0][0]) > 0

"""The latency model: known answers, and networks whose true times are drawn and then predicted."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from mpq_compile.cost.latency import Errors, LatencyModel, Observation
from mpq_compile.types import CostTable

NAMES = ("fp32", "bf16", "w8a8", "w4a8")
SPEED = {"fp32": 4.0, "bf16": 2.0, "w8a8": 1.0, "w4a8": 1.0}
# w4a8 runs the kernel of w8a8, as convolutions do.
KERNEL = {"fp32": "fp32", "bf16": "bf16", "w8a8": "int8", "w4a8": "int8"}


def costs(alone: Mapping[str, float], change_us: float = 0.0) -> CostTable:
    """Costs of sites that take ``alone`` µs at int8; the first two may need a conversion."""
    a, b, *_ = alone
    formats = itertools.product(("fp32", "bf16", "u8"), repeat=2)
    return CostTable(
        costs={
            site: {n: {"latency_us": us * SPEED[n], "size_bytes": 8.0} for n in NAMES}
            for site, us in alone.items()
        },
        transitions={(a, b): {pair: change_us * (pair[0] != pair[1]) for pair in formats}},
        overhead={"size_bytes": 16.0},
    )


def model(alone: Mapping[str, float], **changes: float) -> LatencyModel:
    """A model of sites with kernels of their own."""
    kernels = {site: {n: f"{site}/{KERNEL[n]}" for n in NAMES} for site in alone}
    return LatencyModel(costs=costs(alone, **changes), kernels=kernels)


ALONE = {f"s{i}": float(us) for i, us in enumerate((10, 20, 5, 40, 25, 8, 16, 30))}


def uniform(name: str) -> dict[str, str]:
    return dict.fromkeys(ALONE, name)


def observed(
    truth: Mapping[tuple[str, str], float],
    assignment: Mapping[str, str],
    run: int = 0,
    speed: float = 1.0,
    settled: bool = True,
) -> Observation:
    us = speed * sum(truth[site, KERNEL[name]] for site, name in assignment.items())
    return Observation(assignment=assignment, latency_us=us, error=0.002, run=run, settled=settled)


def drawn(seed: int) -> dict[tuple[str, str], float]:
    """True times of (site, kernel): the prior's errors around the times alone."""
    generator, errors = np.random.default_rng(seed), Errors()
    common = generator.normal(0, errors.network)
    compute = {k: generator.normal(0, errors.compute) for k in dict.fromkeys(KERNEL.values())}
    own = (errors.kernel**2 + errors.site**2) ** 0.5
    return {
        (site, KERNEL[n]): us * SPEED[n] * (1 + common + compute[KERNEL[n]] + e)
        for site, us in ALONE.items()
        for n in ("fp32", "bf16", "w8a8")
        for e in [generator.normal(0, own)]
    }


def mixed(seed: int) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    return {site: str(generator.choice(NAMES)) for site in ALONE}


def test_without_whole_networks_the_sum_of_parts_is_predicted() -> None:
    prior = model(ALONE, change_us=3.0)
    names = {**uniform("w8a8"), "s0": "fp32"}
    assert prior.predict(names).mean_us == pytest.approx(prior.alone_us(names) + 3.0)
    assert prior.alone_us(uniform("w8a8")) == sum(ALONE.values())
    assert prior.table().costs["s1"]["bf16"]["latency_us"] == pytest.approx(40.0)


def test_what_was_measured_is_predicted_as_measured() -> None:
    total = sum(ALONE.values())
    slow = Observation(assignment=uniform("fp32"), latency_us=4.4 * total, error=1e-4)
    fast = Observation(assignment=uniform("w8a8"), latency_us=0.9 * total, error=1e-4)
    after = model(ALONE).learned([slow, fast])
    assert after.predict(uniform("fp32")).mean_us == pytest.approx(4.4 * total, rel=1e-3)
    assert after.predict(uniform("w8a8")).mean_us == pytest.approx(0.9 * total, rel=1e-3)
    # The same kernels: nothing is left to know of w4a8 either.
    same = after.predict(uniform("w4a8"), same_run=True)
    assert same.mean_us == pytest.approx(0.9 * total, rel=1e-3)
    assert same.sd_us < 1e-3 * total
    # bf16 was not measured: it takes over what is common to the network, and is less certain.
    other = after.predict(uniform("bf16"), same_run=True)
    assert other.sd_us > 0.05 * other.mean_us


def test_table_and_prediction_agree() -> None:
    truth = drawn(1)
    after = model(ALONE, change_us=2.0).learned(
        [observed(truth, uniform(n)) for n in ("fp32", "bf16", "w8a8")]
        + [observed(truth, mixed(5), run=1)]
    )
    table = after.table()
    for seed in range(5):
        names = mixed(seed)
        total = sum(table.costs[s][n]["latency_us"] for s, n in names.items())
        total += table.overhead["latency_us"]
        formats = {"fp32": "fp32", "bf16": "bf16", "w8a8": "u8", "w4a8": "u8"}
        pair = formats[names["s0"]], formats[names["s1"]]
        total += table.transitions["s0", "s1"][pair]
        assert after.predict(names).mean_us == pytest.approx(total)
    assert table.overhead["size_bytes"] == 16.0
    assert table.costs["s0"]["fp32"]["size_bytes"] == 8.0


def test_intervals_cover_and_anchors_help() -> None:
    """Over many drawn networks, 95 % intervals hold about 95 % of the true latencies."""
    covered, before, after = [], [], []
    for seed in range(40):
        truth = drawn(seed)
        anchors = [observed(truth, uniform(n)) for n in ("fp32", "bf16", "w8a8")]
        prior, learned = model(ALONE), model(ALONE).learned(anchors)
        for number in range(5):
            names = mixed(1000 * seed + number)
            us = observed(truth, names).latency_us
            predicted = learned.predict(names, same_run=True)
            low, high = predicted.interval_us
            covered.append(low <= us <= high)
            before.append(abs(prior.predict(names).mean_us / us - 1))
            after.append(abs(predicted.mean_us / us - 1))
    assert 0.9 <= np.mean(covered) <= 1.0
    assert np.mean(after) < 0.5 * np.mean(before)


def test_a_plan_that_was_measured_corrects_its_neighbours() -> None:
    truth = drawn(7)
    anchors = [observed(truth, uniform(n)) for n in ("fp32", "bf16", "w8a8")]
    names = mixed(3)
    neighbour = {**names, "s2": "fp32" if names["s2"] != "fp32" else "bf16"}
    before = model(ALONE).learned(anchors)
    after = before.learned([observed(truth, names)])
    assert after.predict(neighbour).sd_us < 0.8 * before.predict(neighbour).sd_us


def test_drift_moves_what_comes_next() -> None:
    """Where a later run finds the machine a tenth slower, so is all that comes after it."""
    truth = drawn(2)
    anchors = [observed(truth, uniform(n)) for n in ("fp32", "bf16", "w8a8")]
    slow = observed(truth, uniform("bf16"), run=1, speed=1.1)
    after = model(ALONE).learned([*anchors, slow])
    assert after.next_run == 2
    expected = 1.1 * observed(truth, uniform("fp32")).latency_us
    assert after.predict(uniform("fp32")).mean_us == pytest.approx(expected, rel=0.04)
    again = after.predict(uniform("fp32"))
    assert again.sd_us > after.predict(uniform("fp32"), same_run=True).sd_us


def test_an_unusual_run_says_little_of_the_next() -> None:
    """Its networks are far from what comes next; one that finds the machine as usual tells."""
    truth = drawn(2)
    names = ("fp32", "bf16", "w8a8")
    usual = model(ALONE).learned([observed(truth, uniform(n)) for n in names])
    slow = model(ALONE).learned(
        [observed(truth, uniform(n), speed=1.25, settled=False) for n in names]
    )
    expected, found = usual.predict(mixed(3)), slow.predict(mixed(3))
    assert found.mean_us == pytest.approx(1.25 * expected.mean_us, rel=0.02)
    assert found.sd_us > 4 * expected.sd_us and found.interval_us[0] < expected.mean_us
    after = slow.learned([observed(truth, uniform("bf16"), run=1)]).predict(mixed(3))
    assert after.mean_us == pytest.approx(expected.mean_us, rel=0.03)
    assert after.sd_us < 2 * expected.sd_us
    # Those that are usual are what others are compared with, whichever comes first.
    late = usual.learned([observed(truth, uniform("bf16"), run=1, speed=1.25, settled=False)])
    assert late.predict(mixed(3), same_run=True).mean_us == pytest.approx(found.mean_us, rel=0.03)
    following = late.predict(mixed(3))
    assert following.mean_us == pytest.approx(expected.mean_us, rel=0.03)
    assert following.sd_us < 2 * expected.sd_us
    overhead = late.table().overhead["latency_us"]
    assert overhead == pytest.approx(usual.table().overhead["latency_us"], rel=0.3, abs=2.0)
    again = late.learned([observed(truth, uniform("fp32"), run=2)]).predict(mixed(3))
    assert again.mean_us == pytest.approx(expected.mean_us, rel=0.03)


def test_estimated_kernels_widen_the_interval() -> None:
    known = model(ALONE)
    guessed = LatencyModel(costs=known.costs, kernels=known.kernels, estimated={"s3/int8": 0.2})
    names = uniform("w8a8")
    assert guessed.predict(names).mean_us == known.predict(names).mean_us
    assert guessed.predict(names).sd_us > known.predict(names).sd_us

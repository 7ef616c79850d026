"""The roofline: its equation on known numbers, and that fewer bits never cost more."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq_compile.cost.analytic import (
    analytic_energy_mj,
    analytic_latency_us,
    traffic_bytes,
    weight_bytes,
)
from mpq_compile.cost.profile import Analytic, Profile, RateFormula, Rule, load_profile
from mpq_compile.errors import ProfileError
from mpq_compile.types import Candidate, Site

bits = st.integers(2, 8)


def named(weight_bits: int, activation_bits: int) -> Candidate:
    return Candidate.parse(f"w{weight_bits}a{activation_bits}")


@pytest.fixture
def profile() -> Profile:
    return load_profile("bit_serial")


def with_analytic(profile: Profile, **changes: object) -> Profile:
    assert profile.analytic is not None
    analytic = dataclasses.replace(profile.analytic, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(profile, analytic=analytic)


def test_compute_bound_by_hand(profile: Profile, conv: Site) -> None:
    rate_macs_per_us = 8192e3 / (8 * 4)
    expected = conv.macs / rate_macs_per_us + 2.0
    assert analytic_latency_us(profile, conv, named(8, 4)) == pytest.approx(expected)


def test_memory_bound_by_hand(profile: Profile, linear: Site) -> None:
    traffic = 256 * 128 * 4 // 8 + 4 * 128 + 4 * 256 + 4 * 128
    assert traffic_bytes(linear, named(4, 8)) == traffic
    assert analytic_latency_us(profile, linear, named(4, 8)) == pytest.approx(
        traffic / 12.8e3 + 2.0
    )


def test_energy_by_hand(profile: Profile, linear: Site) -> None:
    candidate = named(4, 8)
    picojoules = linear.macs * 32 * 0.0036 + traffic_bytes(linear, candidate) * 160.0
    assert analytic_energy_mj(profile, linear, candidate) == pytest.approx(picojoules * 1e-9)
    assert profile.energy is not None
    static = dataclasses.replace(profile, energy=dataclasses.replace(profile.energy, static_mw=5.0))
    watts_times_seconds = 5e-3 * analytic_latency_us(profile, linear, candidate) * 1e-6
    assert analytic_energy_mj(static, linear, candidate) == pytest.approx(
        picojoules * 1e-9 + watts_times_seconds * 1e3
    )


def test_depthwise_takes_its_own_efficiency(profile: Profile, depthwise: Site) -> None:
    fast_memory = with_analytic(profile, bandwidth_gbs=1e9, launch_us=0.0)
    expected = depthwise.macs * 64 / (8192e3 * 0.125)
    assert analytic_latency_us(fast_memory, depthwise, named(8, 8)) == pytest.approx(expected)


def test_a_small_onchip_memory_moves_more(conv: Site) -> None:
    candidate = named(8, 8)
    all_once = traffic_bytes(conv, candidate)
    weights, inputs = weight_bytes(conv, candidate), 32 * 28 * 28
    assert traffic_bytes(conv, candidate, 2 * max(weights, inputs)) == all_once
    outputs = all_once - weights - inputs
    tight = traffic_bytes(conv, candidate, 8192)
    assert tight == outputs + min(weights + inputs * 5, inputs + weights * 7)


def test_scales_are_counted(linear: Site) -> None:
    packed = 256 * 128 // 2
    assert weight_bytes(linear, Candidate.parse("w4a8")) == packed + 4 * 128
    assert weight_bytes(linear, Candidate.parse("w4a8g64")) == packed + 4 * 128 * 4
    assert weight_bytes(linear, Candidate.parse("bf16")) == 256 * 128 * 2
    assert weight_bytes(linear, Candidate.parse("w4a16")) == packed + 4 * 128


@given(bits, bits, bits, bits, st.integers(2, 1 << 16), st.floats(1e-3, 1e3))
def test_fewer_bits_never_cost_more(
    w1: int, a1: int, w2: int, a2: int, onchip_bytes: int, bandwidth_gbs: float
) -> None:
    site = Site(
        id="conv:conv2d#0",
        op="conv2d",
        weight_shape=(48, 17, 3, 3),
        input_shape=(1, 17, 20, 20),
        output_shape=(1, 48, 20, 20),
        macs=48 * 17 * 9 * 400,
        group="conv",
    )
    base = load_profile_once()
    profile = with_analytic(base, onchip_bytes=onchip_bytes, bandwidth_gbs=bandwidth_gbs)
    few, many = named(min(w1, w2), min(a1, a2)), named(max(w1, w2), max(a1, a2))
    for cost in (analytic_latency_us, analytic_energy_mj):
        assert cost(profile, site, few) <= cost(profile, site, many)


_PROFILE = load_profile("bit_serial")


def load_profile_once() -> Profile:
    return _PROFILE


def test_bits_pay_where_compute_decides(profile: Profile, conv: Site) -> None:
    costs = [analytic_latency_us(profile, conv, named(b, 8)) for b in range(2, 9)]
    assert costs == sorted(set(costs))


def test_steps_of_the_formula(profile: Profile, conv: Site) -> None:
    coarse = with_analytic(
        profile, formula=RateFormula(peak_gmacs=100.0, weight_step=4, activation_step=8)
    )
    cost = {b: analytic_latency_us(coarse, conv, named(b, 8)) - 2.0 for b in (2, 4, 5, 8)}
    assert cost[2] == cost[4] == pytest.approx(conv.macs / 100e3)
    assert cost[5] == cost[8] == pytest.approx(2 * cost[4])


def test_a_table_of_rates(linear: Site) -> None:
    profile = dataclasses.replace(
        load_profile("generic"),
        operators={"linear": (Rule(candidates=("w4a8g64", "bf16")),)},
        analytic=Analytic(
            table={"w4a8": 2.0, "bf16": 0.5}, efficiency={}, bandwidth_gbs=1e6, launch_us=0.0
        ),
    )
    for name, rate in (("w4a8g64", 2.0), ("bf16", 0.5)):
        found = analytic_latency_us(profile, linear, Candidate.parse(name))
        assert found == pytest.approx(linear.macs / (rate * 1e3))


def test_what_has_no_analytic_cost(profile: Profile, conv: Site) -> None:
    with pytest.raises(ProfileError, match="no analytic cost"):
        analytic_latency_us(load_profile("generic"), conv, named(8, 8))
    with pytest.raises(ProfileError, match="supports none"):
        analytic_latency_us(profile, conv, Candidate.parse("fp32"))
    with pytest.raises(ProfileError, match="no energy figures") as caught:
        analytic_energy_mj(dataclasses.replace(profile, energy=None), conv, named(8, 8))
    assert "energy_mj" in str(caught.value.remedy)

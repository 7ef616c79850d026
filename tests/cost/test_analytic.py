"""The roofline: its equation on known numbers, and that fewer bits never cost more."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq_compile.cost.analytic import (
    analytic_latency_us,
    array_utilisation,
    energy_mj,
    traffic_bytes,
    weight_bytes,
)
from mpq_compile.cost.profile import Analytic, Array, Profile, RateFormula, Rule, load_profile
from mpq_compile.errors import ProfileError
from mpq_compile.types import Candidate, Site

bits = st.integers(2, 8)


def named(weight_bits: int, activation_bits: int) -> Candidate:
    return Candidate.parse(f"w{weight_bits}a{activation_bits}")


def analytic_energy_mj(profile: Profile, site: Site, candidate: Candidate) -> float:
    return energy_mj(profile, site, candidate, analytic_latency_us(profile, site, candidate))


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


# A systolic array, by hand: 64 × 64 products a cycle at 1 GHz, 25.6 GB/s, 1 µs to launch.


def test_a_convolution_on_the_array_by_hand(conv: Site) -> None:
    """K = 32 · 9 = 288 takes 5 tiles of 64 rows, N = 64 one of columns; 784 pixels stream through.

    That is 784 · 5 cycles = 3.92 µs for 8-bit activations, and more than the memory takes. int4
    needs half of them, so that the memory decides.
    """
    npu = load_profile("systolic_npu")
    assert array_utilisation(Array(rows=64, columns=64), conv) == pytest.approx(288 / 320)
    found = {name: analytic_latency_us(npu, conv, Candidate.parse(name)) for name in npu.defaults}
    assert found["w8a8"] == found["w4a8"] == pytest.approx(3.92 + 1.0)
    # Codes and scales of the weights, input, output.
    traffic_us = (18432 / 2 + 4 * 64 + 32 * 784 + 64 * 784) / 25.6e3
    assert found["w4a4"] == pytest.approx(traffic_us + 1.0)


def test_a_depthwise_layer_on_the_array_by_hand(depthwise: Site) -> None:
    """Each of 32 channels has a tile of its own: 9 of 64 rows in one of 64 columns."""
    array = Array(rows=64, columns=64)
    assert array_utilisation(array, depthwise) == pytest.approx(9 / 64 / 64)
    npu = with_analytic(load_profile("systolic_npu"), bandwidth_gbs=1e9)
    # 32 tiles, 784 pixels each at one a cycle: 25.088 µs.
    assert analytic_latency_us(npu, depthwise, named(8, 8)) == pytest.approx(25.088 + 1.0)
    assert analytic_latency_us(npu, depthwise, named(4, 4)) == pytest.approx(25.088 / 2 + 1.0)


def test_a_linear_layer_on_the_array_by_hand(linear: Site) -> None:
    """256 × 128 weights are 4 × 2 full tiles, so that 4 rows take 32 cycles; the weights decide."""
    assert array_utilisation(Array(rows=64, columns=64), linear) == 1.0
    npu = load_profile("systolic_npu")
    bytes_of = {"w8a8": 32768, "w4a8": 16384, "w4a4": 16384}
    for name, packed in bytes_of.items():
        expected = (packed + 4 * 128 + 4 * 256 + 4 * 128) / 25.6e3 + 1.0
        assert analytic_latency_us(npu, linear, Candidate.parse(name)) == pytest.approx(expected)


def test_a_transposed_convolution_multiplies_each_input_pixel(transposed: Site) -> None:
    """K = 32 input channels along the rows, N = 16 · 4 along the columns, 14 · 14 pixels."""
    assert array_utilisation(Array(rows=64, columns=64), transposed) == pytest.approx(0.5)
    npu = with_analytic(load_profile("systolic_npu"), bandwidth_gbs=1e9, launch_us=0.0)
    assert analytic_latency_us(npu, transposed, named(8, 8)) == pytest.approx(0.196)


def test_groups_have_tiles_of_their_own(conv: Site) -> None:
    grouped = dataclasses.replace(conv, weight_shape=(64, 8, 3, 3), groups=4, macs=conv.macs // 4)
    # K = 8 · 9 = 72 takes two tiles of 64, N = 16 a quarter of one.
    expected = 72 / 128 * 16 / 64
    assert array_utilisation(Array(rows=64, columns=64), grouped) == pytest.approx(expected)


def test_energy_on_the_array_by_hand(linear: Site) -> None:
    npu = load_profile("systolic_npu")
    candidate = named(4, 4)
    traffic = 16384 + 4 * 128 + 4 * 256 + 4 * 128
    picojoules = 131072 * 16 * 0.0036 + traffic * 160.0
    static_mj = 1.75 * (traffic / 25.6e9 + 1e-6) * 1e3
    found = analytic_energy_mj(npu, linear, candidate)
    assert found == pytest.approx(picojoules * 1e-9 + static_mj)


sizes = st.integers(1, 600)


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 300), st.integers(1, 300))
def test_utilisation_is_whole_tiles(
    inputs: int, outputs: int, kernel: int, rows: int, columns: int
) -> None:
    site = pointwise(inputs, outputs, kernel)
    share = array_utilisation(Array(rows=rows, columns=columns), site)
    assert 0 < share <= 1
    depth = inputs * kernel * kernel
    tiles = -(-depth // rows) * -(-outputs // columns)
    assert share == pytest.approx(depth * outputs / (tiles * rows * columns))
    fits = depth % rows == 0 and outputs % columns == 0
    assert (share == pytest.approx(1.0, abs=1e-12)) == fits


def pointwise(inputs: int, outputs: int, kernel: int) -> Site:
    return Site(
        id="conv:conv2d#0",
        op="conv2d",
        weight_shape=(outputs, inputs, kernel, kernel),
        input_shape=(1, inputs, 12, 12),
        output_shape=(1, outputs, 12, 12),
        macs=outputs * inputs * kernel * kernel * 144,
        group="conv",
    )


even = st.integers(1, 300).map(lambda half: 2 * half)


@given(even, even, st.integers(1, 5), st.floats(0.1, 1e4), st.integers(2, 1 << 22))
def test_on_the_array_more_bits_are_never_faster(
    inputs: int, outputs: int, kernel: int, bandwidth_gbs: float, onchip_bytes: int
) -> None:
    npu = with_analytic(NPU, bandwidth_gbs=bandwidth_gbs, onchip_bytes=onchip_bytes)
    site = pointwise(inputs, outputs, kernel)
    names = ("w4a4", "w4a8", "w8a8")
    for cost in (analytic_latency_us, analytic_energy_mj):
        costs = [cost(npu, site, Candidate.parse(name)) for name in names]
        assert costs == sorted(costs)


@given(
    even,
    even,
    st.sampled_from(("w4a4", "w4a8", "w8a8")),
    st.floats(0.1, 1e4),
    st.floats(1.0, 1e3),
    st.integers(2, 1 << 22),
    st.integers(0, 1 << 22),
)
def test_more_bandwidth_or_memory_is_never_slower(
    inputs: int,
    outputs: int,
    name: str,
    bandwidth_gbs: float,
    factor: float,
    onchip_bytes: int,
    added_bytes: int,
) -> None:
    site, candidate = pointwise(inputs, outputs, 3), Candidate.parse(name)
    npu = with_analytic(NPU, bandwidth_gbs=bandwidth_gbs, onchip_bytes=onchip_bytes)
    least = analytic_latency_us(npu, site, candidate)
    wider = with_analytic(npu, bandwidth_gbs=bandwidth_gbs * factor)
    larger = with_analytic(npu, onchip_bytes=onchip_bytes + added_bytes)
    assert analytic_latency_us(wider, site, candidate) <= least
    assert analytic_latency_us(larger, site, candidate) <= least


NPU = load_profile("systolic_npu")


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

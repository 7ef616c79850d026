"""Observers: histograms that grow, ranges, and the codes that come of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mpq_compile.errors import CalibrationError
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.observers import (
    OBSERVERS,
    PROPOSED,
    Histogram,
    activation_qparams,
    affine_qparams,
    fake_quantize,
    mse_range,
    noise,
)

BOUND = st.floats(-1e3, 1e3, width=32)
BITS = st.integers(2, 8)


def histogram(*batches: torch.Tensor) -> Histogram:
    seen = Histogram()
    for batch in batches:
        seen.observe(batch)
    return seen


def normal(count: int = 4096, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@given(a=BOUND, b=BOUND, bits=BITS)
def test_zero_is_a_code(a: float, b: float, bits: int) -> None:
    qparams = affine_qparams(min(a, b), max(a, b), bits)
    assert 0 <= qparams.zero_point <= qparams.spec.qmax == 2**bits - 1
    assert qparams.scale > 0 and qparams.scale == float(np.float32(qparams.scale))
    assert fake_quantize(torch.zeros(1), qparams).item() == 0.0


@given(high=st.floats(0, 1e6, width=32), low=st.floats(0, 1e6, width=32), bits=BITS)
def test_zero_point_is_zero_after_relu(low: float, high: float, bits: int) -> None:
    assert affine_qparams(min(low, high), max(low, high), bits).zero_point == 0


@given(a=st.floats(-50, 0), b=st.floats(0.01, 50), bits=BITS, seed=st.integers(0, 2**31))
def test_error_is_half_a_step_inside_the_range(a: float, b: float, bits: int, seed: int) -> None:
    qparams = affine_qparams(a, b, bits)
    low = -qparams.zero_point * qparams.scale
    high = (qparams.spec.qmax - qparams.zero_point) * qparams.scale
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(64, generator=generator)
    error = (fake_quantize(x, qparams) - x).abs().max().item()
    assert error <= qparams.scale / 2 * (1 + 1e-4)


def test_values_beyond_the_range_saturate() -> None:
    qparams = affine_qparams(-1.0, 1.0, 8)
    low, high = fake_quantize(torch.tensor([-100.0, 100.0]), qparams).tolist()
    assert low == pytest.approx(-1.0, abs=qparams.scale)
    assert high == pytest.approx(1.0, abs=qparams.scale)


def test_a_constant_zero_has_codes() -> None:
    qparams = activation_qparams(histogram(torch.zeros(10)), 8)
    assert fake_quantize(torch.zeros(3), qparams).tolist() == [0, 0, 0]


@given(
    spans=st.lists(st.tuples(st.floats(-100, 100), st.floats(1e-3, 100)), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_widening_keeps_every_value(spans: list[tuple[float, float]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [centre + width * torch.randn(50, generator=generator) for centre, width in spans]
    seen = histogram(*batches)
    everything = torch.cat(batches)
    assert seen.counts.sum() == everything.numel()
    assert seen.minimum == everything.min().item() and seen.maximum == everything.max().item()
    assert seen.low <= seen.minimum
    assert seen.maximum <= seen.low + len(seen.counts) * seen.width * (1 + 1e-6)


def test_bins_hold_what_fell_into_them() -> None:
    values = normal(20000)
    seen = histogram(*values.split(1000))
    share = (seen.counts * (np.abs(seen.centers()) < 1)).sum() / seen.counts.sum()
    assert share == pytest.approx(0.6827, abs=0.01)


def test_an_empty_batch_changes_nothing() -> None:
    seen = histogram(normal(), torch.empty(0))
    assert seen.counts.sum() == 4096


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_observer_gives_a_range_within_what_was_seen(name: str, bits: int) -> None:
    seen = histogram(normal())
    low, high = OBSERVERS[name](seen, bits)
    assert seen.minimum <= low < 0 < high <= seen.maximum


def test_minmax_covers_everything() -> None:
    seen = histogram(normal())
    assert OBSERVERS["minmax"](seen, 8) == (seen.minimum, seen.maximum)


def test_percentile_and_mse_leave_an_outlier_out() -> None:
    seen = histogram(torch.cat([normal(200_000), torch.tensor([1000.0])]))
    assert OBSERVERS["percentile"](seen, 8)[1] < 10
    assert mse_range(seen, 8)[1] <= 1000.0
    four = histogram(torch.cat([normal(), torch.tensor([12.0])]))
    assert mse_range(four, 4)[1] < 12.0


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_mse_errs_no_more_than_minmax(bits: int) -> None:
    x = normal()
    seen = histogram(x)
    errors = {
        name: (fake_quantize(x, activation_qparams(seen, bits, name)) - x).square().mean().item()
        for name in ("mse", "minmax")
    }
    assert errors["mse"] <= errors["minmax"] * (1 + 1e-6)


@pytest.mark.parametrize(("sign", "zero_point"), [(1, 1), (-1, 2)])
def test_the_ends_of_a_range_are_found_apart(sign: int, zero_point: int) -> None:
    """At 2 bits −1, 0, 1, 2 are codes of one range; scaling [−1, 10] as a whole never gives it."""
    values = sign * torch.tensor([*[-1.0, 0.0, 1.0, 2.0] * 100, 10.0])
    found = activation_qparams(histogram(values), 2)
    assert found.zero_point == zero_point and found.scale == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("active", [F.hardswish, F.silu, F.gelu])
def test_the_lobe_of_a_swish_is_kept_where_its_tail_is_cut(active) -> None:
    values = active(normal(200_000) * 1.5)
    values[:3] = 20.0
    low, high = mse_range(histogram(values), 4)
    assert high < 10 and low <= 0.5 * float(values.min())


def brute_force(seen: Histogram, bits: int, cut: float = 1.0) -> float:
    """Least noise over a grid of both ends."""
    shares = np.linspace(1.0, 0.2, 41)
    low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    return min(noise(seen, (low * a, high * b), bits, cut) for a in shares for b in shares)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", ["swish", "skewed", "positive"])
def test_mse_is_as_good_as_brute_force(shape: str, bits: int) -> None:
    values = {
        "swish": F.silu(2 * normal(500)),
        "skewed": normal(500).exp() - 1,
        "positive": normal(500).relu(),
    }[shape]
    seen = histogram(values)
    for cut in (1.0, 4.0):
        found = noise(seen, mse_range(seen, bits, cut), bits, cut)
        assert found <= 1.02 * brute_force(seen, bits, cut)


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_more_a_cut_counts_the_less_is_cut(bits: int) -> None:
    x = normal(100_000)
    seen = histogram(x)
    spans = [OBSERVERS[name](seen, bits) for name in PROPOSED]
    lost = [float((x - x.clamp(*span)).square().sum()) for span in spans]
    assert lost == sorted(lost, reverse=True) and lost[0] > lost[-1] == 0.0
    errors = [noise(seen, span, bits) for span in spans]
    assert errors == sorted(errors), "of the tensor alone, more error"


def test_what_is_cut_counts_as_often_as_is_said() -> None:
    """Of 0, 1, 2 and 4 at codes 0, 1, 2 and 3 only the last is cut, by one."""
    seen = histogram(torch.tensor([0.0, 1.0, 2.0, 4.0]))
    for times in (1.0, 2.0, 5.0):
        assert noise(seen, (0.0, 3.0), 2, times) == pytest.approx(times / 4, rel=0.02)


def test_a_range_does_not_depend_on_batches_within_the_extremes() -> None:
    values = F.hardswish(3 * normal(3000))
    values = values[values.abs().argsort(descending=True)]
    values[:2] = torch.stack([values.min(), values.max()])
    whole, pieces = histogram(values), histogram(*values.split(7))
    assert (whole.counts == pieces.counts).all()
    for bits in (2, 4, 8):
        assert mse_range(whole, bits) == mse_range(pieces, bits) == mse_range(whole, bits)


def test_entropy_keeps_most_of_the_values() -> None:
    x = normal()
    low, high = OBSERVERS["entropy"](histogram(x), 8)
    assert ((x >= low) & (x <= high)).float().mean() > 0.9


def test_an_unknown_observer_suggests_the_nearest() -> None:
    with pytest.raises(CalibrationError, match="percentil") as caught:
        activation_qparams(histogram(normal()), 8, "percentil")
    assert "did you mean 'percentile'" in str(caught.value.remedy)


def test_an_unseen_tensor_has_no_range() -> None:
    with pytest.raises(CalibrationError, match="never observed"):
        activation_qparams(Histogram(), 8)


def test_calibration_keeps_qparams_by_node_and_bits() -> None:
    calibration = Calibration(histograms={"a": histogram(normal())}, observer="mse", samples=1)
    assert calibration.qparams("a", 8) is calibration.qparams("a", 8)
    assert calibration.qparams("a", 4).scale > calibration.qparams("a", 8).scale


def test_a_mask_s_infinities_have_no_place_in_a_range() -> None:
    """Masks add −∞ to what takes no part: the range is that of the rest, without a warning."""
    masked, plain = Histogram(), Histogram()
    for batch in (torch.linspace(-1.0, 2.0, 50), torch.linspace(-3.0, 1.0, 50)):
        plain.observe(batch)
        masked.observe(torch.cat([batch, torch.full((3,), float("-inf"))]))
        masked.observe(torch.full((2,), float("nan")))
    assert (masked.minimum, masked.maximum) == (plain.minimum, plain.maximum)
    np.testing.assert_array_equal(masked.counts, plain.counts)

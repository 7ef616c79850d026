"""How much ranges still move, from histograms of growing parts of the data."""

from __future__ import annotations

import pytest
import torch

from mpq_compile.quant.calibration import Calibration, Prefix
from mpq_compile.quant.observers import Histogram, affine_qparams, fake_quantize, noise
from mpq_compile.quant.range_stability import first_within, noise_excess, range_note


def seen(*values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    return histogram


def calibration(early: torch.Tensor, late: torch.Tensor, observer: str = "mse") -> Calibration:
    return Calibration(
        histograms={"x": seen(early, late)},
        observer=observer,
        samples=2,
        prefixes=(Prefix(samples=1, histograms={"x": seen(early)}),),
    )


NORMAL = torch.randn(20000, generator=torch.Generator().manual_seed(0))


def test_noise_is_that_of_fake_quantization() -> None:
    qparams = affine_qparams(-2.0, 3.0, 6)
    exact = (NORMAL - fake_quantize(NORMAL, qparams)).square().mean().item()
    assert noise(seen(NORMAL), (-2.0, 3.0), 6) == pytest.approx(exact, rel=0.02)


def test_power_is_the_mean_square() -> None:
    assert seen(NORMAL).power() == pytest.approx(NORMAL.square().mean().item(), rel=1e-3)
    assert seen(torch.zeros(5)).power() > 0


def test_a_copy_does_not_see_what_comes_after() -> None:
    histogram = seen(torch.ones(3))
    copy = histogram.copy()
    histogram.observe(torch.full((3,), 9.0))
    assert (copy.maximum, copy.counts.sum()) == (1.0, 3)


@pytest.mark.parametrize("observer", ["mse", "minmax", "percentile"])
def test_more_of_the_same_moves_nothing(observer: str) -> None:
    found = calibration(NORMAL, NORMAL.flip(0), observer)
    assert noise_excess(found, found.prefixes[0]) < 1e-6
    assert range_note(found).startswith("ranges are stable from 1 samples of 2")


@pytest.mark.parametrize("observer", ["mse", "minmax", "percentile"])
def test_a_range_that_grows_is_said_to(observer: str) -> None:
    found = calibration(NORMAL, 4 * NORMAL, observer)
    assert noise_excess(found, found.prefixes[0]) > 0.5
    assert range_note(found).startswith("ranges are not stable yet at 2 samples")


def test_a_tensor_that_is_always_zero_moves_nothing() -> None:
    found = calibration(torch.zeros(9), torch.zeros(9))
    assert noise_excess(found, found.prefixes[0]) == 0


def test_one_batch_tells_nothing() -> None:
    found = Calibration(histograms={"x": seen(NORMAL)}, observer="mse", samples=16)
    assert "cannot be told from one batch of 16 samples" in range_note(found)


@pytest.mark.parametrize(
    ("moved", "first"),
    [
        ([0.5, 0.02, 0.001], 4),
        ([0.5, 0.001, 0.001], 2),
        ([0.0, 0.0, 0.0], 1),
        ([0.0, 0.5, 0.001], 4),
        ([0.0, 0.0, 0.5], None),
        ([0.01, 0.01, 0.01], 1),
    ],
)
def test_stable_is_what_stays_so(moved: list[float], first: int | None) -> None:
    assert first_within([1, 2, 4], moved, 0.01) == first

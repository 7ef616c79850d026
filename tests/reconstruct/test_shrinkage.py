"""How much of the identity is mixed into moments of few draws."""

from __future__ import annotations

import pytest
import torch

from mpq_compile.reconstruct.moments import Moments
from mpq_compile.reconstruct.site_fit import shrinkage

WIDTH = 24


def drawn(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the true moments of correlated inputs, and those of ``count`` draws, [1, K, K]."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    x = mix @ torch.randn(WIDTH, count, generator=generator, dtype=torch.float64)
    return (mix @ mix.T)[None], (x @ x.T / count)[None]


def test_moments_of_few_draws_come_closer_to_the_true_ones() -> None:
    for seed in range(10):
        true, found = drawn(WIDTH // 2, seed)
        share = shrinkage(found, WIDTH / 2)[:, None, None]
        even = found.diagonal(dim1=1, dim2=2).mean() * torch.eye(WIDTH, dtype=torch.float64)
        shrunk = (1 - share) * found + share * even
        assert (shrunk - true).norm() < (found - true).norm()


def test_the_share_falls_with_the_draws() -> None:
    shares = [float(shrinkage(drawn(count)[1], count)) for count in (8, 32, 128, 4096)]
    assert shares == sorted(shares, reverse=True)
    assert 0.2 < shares[0] <= 1 and shares[-1] < 0.02


def test_what_is_even_already_is_left_to_the_identity() -> None:
    even = torch.eye(WIDTH, dtype=torch.float64)[None]
    assert float(shrinkage(even, 10.0)) == 1.0
    assert float(shrinkage(0 * even, 10.0)) == 1.0


@pytest.mark.parametrize(("samples", "worth"), [(16, 63.2456), (1000, 100.0)])
def test_positions_of_one_sample_count_less(samples: int, worth: float) -> None:
    moments = Moments()
    moments.add(torch.ones(1, 3, 100), torch.ones(1, 2, 100), samples)
    assert moments.independent == pytest.approx(worth)

"""Integer least squares: against brute force, against its own promises, group by group."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mpq_compile.reconstruct.integer_least_squares import Grid, descend, loss, solve


def problem(
    seed: int, groups: int = 1, rows: int = 5, width: int = 4, correlated: bool = True
) -> tuple[Tensor, Tensor]:
    """Return random targets [G, n, K] and moments [G, K, K]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, width, 40, generator=generator)
    if correlated:
        x = x + 1.5 * x[:, :1]
    target = torch.randn(groups, rows, width, generator=generator)
    return target, x @ x.mT / 40 + 0.01 * torch.eye(width)


def nearest(target: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the nearest codes with scales that reach each row's largest weight."""
    size = grid.group_size or target.shape[-1]
    scale = target.unflatten(-1, (-1, size)).abs().amax(-1) / grid.high
    return grid.round(target, grid.expand(scale, target.shape[-1])), scale


GRIDS = [Grid(low=-2, high=1), Grid(low=-4, high=3), Grid(low=-8, high=7)]


@pytest.mark.parametrize("grid", GRIDS, ids=["2 bits", "3 bits", "4 bits"])
@pytest.mark.parametrize("seed", range(5))
def test_no_row_gets_worse_and_most_get_better(grid: Grid, seed: int) -> None:
    target, moments = problem(seed, groups=3, rows=7, width=70)
    start, start_scale = nearest(target, grid)
    codes, scale = solve(target, moments, start, start_scale, grid)
    found = loss(codes, grid.expand(scale, 70), target, moments)
    before = loss(start, grid.expand(start_scale, 70), target, moments)
    assert (found <= before).all() and found.sum() < 0.9 * before.sum()
    assert codes.min() >= grid.low and codes.max() <= grid.high
    assert (codes == codes.round()).all() and (scale > 0).all()


def test_a_descent_ends_where_no_single_code_could_be_better() -> None:
    grid = Grid(low=-4, high=3)
    target, moments = problem(0, groups=3, rows=7, width=70)
    start, scale = nearest(target, grid)
    every = grid.expand(scale, 70)
    codes = descend(start, every, target, moments, grid, sweeps=200)
    found = loss(codes, every, target, moments)
    assert torch.equal(descend(codes, every, target, moments, grid), codes)
    for column in range(70):
        for step in (-1, 1):
            moved = codes.clone()
            moved[..., column] = (moved[..., column] + step).clamp(grid.low, grid.high)
            assert (loss(moved, every, target, moments) >= found * (1 - 1e-4)).all()


@pytest.mark.parametrize("grid", GRIDS[:2], ids=["2 bits", "3 bits"])
def test_against_all_codes_there_are(grid: Grid) -> None:
    """For the scale that was found, most rows have the best of all codes; all come near."""
    best_of, near = 0, []
    lattice = torch.tensor(list(itertools.product(range(grid.low, grid.high + 1), repeat=4)))
    for seed in range(20):
        target, moments = problem(seed)
        codes, scale = solve(target, moments, *nearest(target, grid), grid)
        found = loss(codes, scale, target, moments)[0]
        all_codes = lattice[:, None, :].expand(-1, 5, -1).float()
        least = loss(all_codes, scale, target, moments[0]).amin(0)
        best_of += int((found <= least * (1 + 1e-4) + 1e-7).sum())
        near.append(float(found.sum() / least.sum().clamp_min(1e-9)))
    assert best_of >= 75
    assert max(near) < 2.0


def test_uncorrelated_inputs_make_the_nearest_codes_best() -> None:
    target, _ = problem(0, width=16)
    moments = torch.diag(torch.linspace(0.5, 2.0, 16))[None]
    grid = Grid(low=-8, high=7)
    codes, scale = nearest(target, grid)
    elsewhere = (codes + 2).clamp(-8, 7)
    descended = descend(elsewhere, grid.expand(scale, 16), target, moments, grid)
    assert torch.equal(descended, codes)


def test_what_the_grid_holds_is_found() -> None:
    grid = Grid(low=-4, high=3)
    _, moments = problem(3, groups=2, rows=6, width=24)
    generator = torch.Generator().manual_seed(5)
    exact = torch.randint(-4, 4, (2, 6, 24), generator=generator).float()
    exact[..., 0] = -4.0
    scale = torch.rand(2, 6, 1, generator=generator) + 0.5
    target = exact * scale
    codes, found = solve(target, moments, grid.round(target, scale), scale, grid)
    assert torch.equal(codes, exact)
    assert torch.allclose(found, scale)


def test_groups_do_not_meet() -> None:
    """Two groups solved together are what they are alone."""
    grid = Grid(low=-4, high=3)
    target, moments = problem(1, groups=2, rows=4, width=20)
    start, scale = nearest(target, grid)
    codes, scales = solve(target, moments, start, scale, grid)
    for g in range(2):
        part = slice(g, g + 1)
        alone, alone_scale = solve(target[part], moments[part], start[part], scale[part], grid)
        assert torch.equal(alone, codes[part])
        assert torch.allclose(alone_scale, scales[part])


def test_a_scale_for_each_group_of_inputs() -> None:
    grid = Grid(low=-8, high=7, group_size=8)
    target, moments = problem(2, rows=6, width=32)
    start, scale = nearest(target, grid)
    codes, scales = solve(target, moments, start, scale, grid)
    assert scales.shape == (1, 6, 4)
    before = loss(start, grid.expand(scale, 32), target, moments)
    assert (loss(codes, grid.expand(scales, 32), target, moments) < before).all()


def test_a_channel_of_zeros_stays_zero() -> None:
    grid = Grid(low=-4, high=3)
    _, moments = problem(4, width=12)
    target = torch.zeros(1, 3, 12)
    scale = torch.full((1, 3, 1), 1e-36)
    codes, scales = solve(target, moments, torch.zeros_like(target), scale, grid)
    assert not codes.any() and scales.isfinite().all()

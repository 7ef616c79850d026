"""Codes of a weight that reproduce a linear layer's output best in the mean square.

For inputs x with second moments H and targets t, a row w of the weight loses

    E (t − w·x)² = (w − w*) H (w − w*)ᵀ + what no weight reaches,    w* = E[t xᵀ] H⁻¹

so the best codes are the lattice point nearest to w* in the metric H: an integer least squares
problem for each row. It is solved

1. by error feedback: columns are rounded one after the other, and the columns that are left take
   up what rounding took (GPTQ, Frantar et al., arXiv 2210.17323, with its order of columns by
   their power; the same as Babai's nearest plane);
2. then by coordinate descent, until no code moves or a few passes are over: each is set to its
   best value while the others stay (QuantEase, Behdin et al., arXiv 2309.01885);
3. with the scale refitted in between, ``s = (w* H qᵀ) / (q H qᵀ)``, and from several scales, of
   which each row keeps what loses least [derived].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Scales that are tried, as multiples of the one that rounds the weight best.
FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1)
# Columns that are rounded before the rest hears of it in one product of matrices.
_BLOCK = 64
_SWEEPS, _REFITS = 5, 2
# Rows, times the scales tried, that are worked on at a time.
_VALUES = 2**24


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Codes from ``low`` to ``high``; one scale a row, or one for each group of inputs."""

    low: int
    high: int
    group_size: int | None = None

    def expand(self, scale: Tensor, width: int) -> Tensor:
        """Return the scale of each weight: [..., groups] → [..., width]."""
        return scale.repeat_interleave(width // scale.shape[-1], -1)

    def round(self, real: Tensor, scale: Tensor) -> Tensor:
        """Return the nearest codes, as floats; ``scale`` is that of each weight."""
        return torch.clamp(torch.round(real / scale), self.low, self.high)


def solve(
    target: Tensor,
    moments: Tensor,
    codes: Tensor,
    scale: Tensor,
    grid: Grid,
    feedback: Feedback | None = None,
) -> tuple[Tensor, Tensor]:
    """Return codes and scales of rows that are near ``target`` in the metric of ``moments``.

    No row ends farther from it than it was.

    Args:
        target: w*, float32 [G, n, K]: n rows that share the inputs of group G.
        moments: H, float32 [G, K, K], positive definite.
        codes, scale: Where to start, float32 [G, n, K] and [G, n, groups].
        grid: The codes.
        feedback: Of these moments, where several grids share it.

    Returns:
        Codes as float32 [G, n, K], and scales, float32 [G, n, groups].
    """
    feedback = feedback or Feedback(moments)
    rows = max(1, _VALUES // (target.shape[0] * target.shape[2] * len(FACTORS)))
    parts = [
        _solve_rows(part, moments, feedback, start, grid)
        for part, start in zip(target.split(rows, 1), scale.split(rows, 1), strict=True)
    ]
    found, scales = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    width = target.shape[-1]
    before = loss(codes, grid.expand(scale, width), target, moments)
    better = (loss(found, grid.expand(scales, width), target, moments) < before)[..., None]
    return torch.where(better, found, codes), torch.where(better, scales, scale)


def loss(codes: Tensor, scale: Tensor, target: Tensor, moments: Tensor) -> Tensor:
    """Return (w − w*) H (w − w*)ᵀ of each row, [G, n]; ``scale`` is that of each weight."""
    error = codes * scale - target
    return ((error @ moments) * error).sum(-1)


def _solve_rows(
    target: Tensor, moments: Tensor, feedback: Feedback, scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    width, count = target.shape[-1], len(FACTORS)
    wide = target.repeat_interleave(count, 1)
    factors = torch.tensor(FACTORS).repeat(target.shape[1])[None, :, None]
    scales = scale.repeat_interleave(count, 1) * factors
    every = grid.expand(scales, width)
    codes = descend(feedback(wide, every, grid), every, wide, moments, grid, sweeps=1)
    losses = loss(codes, every, wide, moments).unflatten(1, (-1, count))
    best = losses.argmin(-1, keepdim=True)
    pick = _picker(best, count)
    return _refined(pick(codes), pick(scales), target, moments, grid)


def _picker(best: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """Return what takes the best of ``count`` variants of each row."""

    def pick(values: Tensor) -> Tensor:
        stacked = values.unflatten(1, (-1, count))
        index = best[..., None].expand(-1, -1, 1, values.shape[-1])
        return stacked.gather(2, index).squeeze(2)

    return pick


def _refined(
    codes: Tensor, scale: Tensor, target: Tensor, moments: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Refit scales and descend in turns, while rows get better."""
    width = target.shape[-1]
    codes = descend(codes, grid.expand(scale, width), target, moments, grid)
    if scale.shape[-1] > 1:
        return codes, scale
    best = loss(codes, grid.expand(scale, width), target, moments)
    for _ in range(_REFITS):
        power = codes @ moments
        below = (power * codes).sum(-1, keepdim=True)
        above = (power * target).sum(-1, keepdim=True)
        fitted = torch.where((below > 0) & (above > 0), above / below.clamp_min(1e-30), scale)
        moved = descend(codes, fitted.expand_as(codes), target, moments, grid)
        found = loss(moved, fitted, target, moments)
        better = (found < best)[..., None]
        if not better.any():
            break
        codes = torch.where(better, moved, codes)
        scale = torch.where(better, fitted, scale)
        best = torch.minimum(found, best)
    return codes, scale


class Feedback:
    """Rounds columns in the order of their power, each passing its error on to those left.

    Args:
        moments: H, float32 [G, K, K], positive definite; it is factorized once.
    """

    def __init__(self, moments: Tensor) -> None:
        self._order = moments.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
        rows = self._order[..., None].expand_as(moments)
        columns = self._order[:, None, :].expand_as(moments)
        ordered = moments.gather(1, rows).gather(2, columns)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered.double()))
        self._factor = torch.linalg.cholesky(inverse, upper=True).float()

    def __call__(self, target: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        order = self._order[:, None, :].expand_as(target)
        left = target.gather(2, order).mT.contiguous()
        scales = scale.expand_as(target).gather(2, order).mT.contiguous()
        codes = torch.empty_like(left)
        width = left.shape[1]
        for start in range(0, width, _BLOCK):
            stop = min(start + _BLOCK, width)
            block, errors = left[:, start:stop].clone(), torch.empty_like(left[:, start:stop])
            within = self._factor[:, start:stop, start:stop]
            for j in range(stop - start):
                step = scales[:, start + j]
                code = grid.round(block[:, j], step)
                codes[:, start + j] = code
                errors[:, j] = (block[:, j] - code * step) / within[:, j, j, None]
                block[:, j + 1 :] -= within[:, j, j + 1 :, None] * errors[:, None, j]
            left[:, stop:] -= self._factor[:, start:stop, stop:].mT @ errors
        return torch.empty_like(target).scatter_(2, order, codes.mT)


def descend(
    codes: Tensor,
    scale: Tensor,
    target: Tensor,
    moments: Tensor,
    grid: Grid,
    sweeps: int = _SWEEPS,
) -> Tensor:
    """Set each code to its best value while the others stay, until none moves.

    Args:
        codes: Where to start, [G, n, K].
        scale: Of each weight, [G, n, K].
        target, moments, grid: As in :func:`solve`.
        sweeps: Most passes over the columns.
    """
    codes = codes.clone()
    rows = torch.arange(codes.shape[1])
    for _ in range(sweeps):
        moved, changed = _swept(codes[:, rows], scale[:, rows], target[:, rows], moments, grid)
        codes[:, rows] = moved
        # A row in which nothing moved is done.
        rows = rows[changed]
        if not len(rows):
            break
    return codes


def _swept(
    codes: Tensor, scale: Tensor, target: Tensor, moments: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return the codes after one pass over the columns, and which rows moved, [n]."""
    pull = ((target - codes * scale) @ moments).mT.contiguous()
    # Columns first, so that what is worked on at a time lies together.
    codes, scale = codes.mT.contiguous(), scale.mT.contiguous()
    power = moments.diagonal(dim1=1, dim2=2)
    changed = torch.zeros(codes.shape[2], dtype=torch.bool)
    width = codes.shape[1]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        near, within = pull[:, start:stop].clone(), moments[:, start:stop, start:stop]
        steps = torch.empty_like(near)
        for j in range(stop - start):
            step, here = scale[:, start + j], codes[:, start + j]
            wanted = here * step + near[:, j] / power[:, start + j, None]
            best = grid.round(wanted, step)
            steps[:, j] = (best - here) * step
            near[:, j + 1 :] -= within[:, j + 1 :, j, None] * steps[:, None, j]
            codes[:, start + j] = best
        if steps.any():
            changed |= steps.ne(0).any(1).any(0)
            pull[:, stop:] -= moments[:, stop:, start:stop] @ steps
    return codes.mT, changed

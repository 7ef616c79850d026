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

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Scales that are tried, as multiples of the one that rounds the weight best.
FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1)
# Columns that are rounded before the rest hears of it in one product of matrices.
_BLOCK = 64
_SWEEPS, _REFITS = 5, 2
# Rows, times the scales tried, that are worked on at a time.
_VALUES = 2**23


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
    metric = _Metric(moments)
    parts = [
        _solve_rows(part, metric, feedback, start, grid)
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
    target: Tensor, metric: _Metric, feedback: Feedback, scale: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    width, count = target.shape[-1], len(FACTORS)
    wide = target.repeat_interleave(count, 1)
    scales = (scale[..., None, :] * torch.tensor(FACTORS)[:, None]).flatten(1, 2)
    every = grid.expand(scales, width)
    codes = feedback(wide, every, grid)
    gap = metric.gap(codes, every, wide)
    _descend(codes, every, gap, metric, grid, sweeps=1)
    best = metric.loss(codes, every, wide, gap).unflatten(1, (-1, count)).argmin(-1)
    rows = torch.arange(target.shape[1]) * count + best

    def pick(values: Tensor) -> Tensor:
        return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))

    return _refined(pick(codes), pick(scales), pick(gap), target, metric, grid)


def _refined(
    codes: Tensor, scale: Tensor, gap: Tensor, target: Tensor, metric: _Metric, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Refit scales and descend in turns, while rows get better."""
    _descend(codes, grid.expand(scale, codes.shape[-1]), gap, metric, grid)
    if scale.shape[-1] > 1:
        return codes, scale
    best = metric.loss(codes, scale, target, gap)
    for _ in range(_REFITS):
        reach = codes @ metric.ratios
        power = reach * metric.power
        below = (power * codes).sum(-1, keepdim=True)
        above = (power * target).sum(-1, keepdim=True)
        fitted = torch.where((below > 0) & (above > 0), above / below.clamp_min(1e-30), scale)
        moved, left = codes.clone(), gap + (scale - fitted) * reach
        _descend(moved, fitted.expand_as(moved), left, metric, grid)
        found = metric.loss(moved, fitted, target, left)
        better = (found < best)[..., None]
        if not better.any():
            break
        codes, gap = torch.where(better, moved, codes), torch.where(better, left, gap)
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
        # H = UUᵀ of an upper U: a row loses |error · U|², and each entry of that is made small by
        # its own column, as those before it are rounded already.
        upper = torch.linalg.cholesky(ordered.double().flip(1, 2)).flip(1, 2)
        self._ratios = (upper / upper.diagonal(dim1=1, dim2=2)[:, None, :]).float()

    def __call__(self, target: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        order = self._order[:, None, :].expand_as(target)
        aim, scales = target.gather(2, order), scale.expand_as(target).gather(2, order)
        wanted, codes = aim.clone(), torch.empty_like(aim)
        for start in range(0, aim.shape[-1], _BLOCK):
            here, after = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
            near, ratios = wanted[..., here], self._ratios[:, here]
            found = _rounded(near, aim[..., here], scales[..., here], ratios[..., here], grid)
            codes[..., here], moves = found
            wanted[..., after].baddbmm_(moves, ratios[..., after], alpha=-1)
        return torch.empty_like(target).scatter_(2, order, codes)


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
    codes, metric = codes.clone(), _Metric(moments)
    _descend(codes, scale, metric.gap(codes, scale, target), metric, grid, sweeps)
    return codes


class _Metric:
    """H as descents use it: by how far each weight is from its best value while others stay.

    Args:
        moments: H, float32 [G, K, K], positive definite.
    """

    def __init__(self, moments: Tensor) -> None:
        self.power = moments.diagonal(dim1=1, dim2=2)[:, None, :]
        self.ratios = moments / self.power

    def gap(self, codes: Tensor, scale: Tensor, target: Tensor) -> Tensor:
        """Return how far that is, [G, n, K]."""
        return (target - codes * scale) @ self.ratios

    def loss(self, codes: Tensor, scale: Tensor, target: Tensor, gap: Tensor) -> Tensor:
        """Return what :func:`loss` does, without a product of matrices."""
        return ((target - codes * scale) * gap * self.power).sum(-1)


def _descend(
    codes: Tensor, scale: Tensor, gap: Tensor, metric: _Metric, grid: Grid, sweeps: int = _SWEEPS
) -> None:
    """Descend from codes whose ``gap`` is known; both change in place."""
    rows = torch.arange(codes.shape[1])
    for _ in range(sweeps):
        moved = torch.zeros(codes.shape[1], dtype=torch.bool)
        for start in range(0, codes.shape[2], _BLOCK):
            stop = start + _BLOCK
            code, step, left = (x[:, rows, start:stop] for x in (codes, scale, gap))
            some = (grid.round(code * step + left, step) != code).any(2).any(0)
            if not some.any():
                continue
            # Rows in which nothing wants to move stay as they are.
            told, ratios = rows[some], metric.ratios[:, start:stop]
            code, step, left = code[:, some], step[:, some], left[:, some]
            real = code * step
            code, moves = _rounded(real + left, real, step, ratios[..., start:stop], grid)
            codes[:, told, start:stop] = code
            gap.index_add_(1, told, moves @ ratios, alpha=-1)
            moved[told] = True
        # A row in which nothing moved is done.
        rows = moved.nonzero().flatten()
        if not len(rows):
            break


def _rounded(
    wanted: Tensor, start: Tensor, scale: Tensor, ratios: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Round columns one after the other, each with what the moves of those before it change.

    In NumPy: where there is little to do in each column, PyTorch's calls take several times as
    long. A column's values lie together.

    Args:
        wanted, start: Where each weight should be while others stay, and where it is, [G, n, B].
        scale: Of each weight, [G, n, B].
        ratios: How much less is wanted of a column, the last index, when another moves by one.
        grid: The codes.

    Returns:
        Codes, and by how much each weight moved, [G, n, B].
    """
    aims, starts, steps, factors = (
        x.mT.contiguous().numpy() for x in (wanted, start, scale, ratios)
    )
    codes, moves = np.empty_like(aims), np.empty_like(aims)
    for j in range(aims.shape[1]):
        here = slice(j, j + 1)
        code = np.rint((aims[:, here] - factors[:, here, :j] @ moves[:, :j]) / steps[:, here])
        np.maximum(code, grid.low, out=code)
        np.minimum(code, grid.high, out=codes[:, here])
        np.subtract(codes[:, here] * steps[:, here], starts[:, here], out=moves[:, here])
    return torch.from_numpy(codes).mT, torch.from_numpy(moves).mT

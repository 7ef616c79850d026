"""Codes, scale and shift of one site at any width, of the moments that were gathered there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mpq_compile.quant.weights import ChannelFit, QuantizedWeight
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.reconstruct.integer_least_squares import Feedback, Grid, solve
from mpq_compile.reconstruct.moments import Moments, Pool, Reader
from mpq_compile.reconstruct.rounded_site import check_finite

# Least share of a multiple of the identity in the inputs' second moments.
_DAMPING = 0.01
_LEAST_POWER = 1e-12

SiteFit = tuple[QuantizedWeight, ChannelFit]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One site that multiplies by a weight: where its bias comes from.

    Args:
        inputs, outputs: Means, float64 [G, K] and [G, n].
        bias: The float bias, float32 [N].
        biased: Whether that is stored, and may change: then moments are about the means, else
            about zero.
    """

    inputs: Tensor
    outputs: Tensor
    bias: Tensor
    biased: bool

    @classmethod
    def of(cls, site: str, moments: Moments, bias: Tensor) -> Place:
        """Return what is kept of a site's moments for its bias.

        Raises:
            CalibrationError: What it saw is not finite.
        """
        check_finite(site, moments.squares, moments.crosses)
        inputs, outputs = moments.means()
        return cls(inputs=inputs, outputs=outputs, bias=bias, biased=bool(bias.any()))

    def shift(self, weight: Tensor) -> Tensor:
        """Return what the mean lacks with ``weight``, float64 [G, n, K]; zero without a bias."""
        if not self.biased:
            return torch.zeros_like(self.bias)
        given = (weight @ self.inputs[..., None]).squeeze(-1)
        return (self.outputs - given).flatten().float() - self.bias


@dataclass(frozen=True, kw_only=True)
class SiteProblem:
    """What the codes of a weight should come close to; it serves every width.

    Args:
        target: The weight that reproduces the outputs best, w*, float32 [G, n, K].
        metric: H, the second moments of inputs, shrunk, float32 [G, K, K].
        places: The sites that multiply by the weight: often one.
    """

    target: Tensor
    metric: Tensor
    places: tuple[Place, ...]

    @classmethod
    def of(cls, site: str, reader: Reader, moments: Moments, bias: Tensor) -> SiteProblem | None:
        """Return the problem of a site; None where it saw fewer than 64 values of a channel.

        Raises:
            CalibrationError: What it saw is not finite.
        """
        pool = Pool()
        place = Place.of(site, moments, bias)
        pool.add(moments, place.biased)
        return cls.together(reader, pool, [place])

    @classmethod
    def together(cls, reader: Reader, pool: Pool, places: Sequence[Place]) -> SiteProblem | None:
        """Return the problem of a weight that several sites multiply by."""
        if pool.count < FEWEST:
            return None
        squares, crosses = pool.means()
        rows = reader.rows
        # Inputs that never vary are held where they are.
        power = squares.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_LEAST_POWER)
        share = shrinkage(squares, pool.independent).clamp_min(_DAMPING)[:, None, None]
        ridge = share * power[:, None, None]
        damped = (1 - share) * squares + ridge * torch.eye(rows.shape[-1], dtype=torch.float64)
        aim = (1 - share) * crosses + ridge * rows.double()
        target = torch.linalg.solve(damped, aim, left=False)
        return cls(target=target.float(), metric=damped.float(), places=tuple(places))

    @cached_property
    def _feedback(self) -> Feedback:
        return Feedback(self.metric)

    def fit(self, start: QuantizedWeight) -> SiteFit:
        """Return codes and scales no farther from the target than ``start``, and the shift.

        Args:
            start: The weight rounded to nearest.
        """
        return self.fits(start)[0]

    def fits(self, start: QuantizedWeight) -> list[SiteFit]:
        """Return the same for each place; weights are one."""
        shape, spec = self.target.shape, start.spec
        codes, scale = solve(
            self.target,
            self.metric,
            start.codes.reshape(shape).float(),
            start.scale.reshape(*shape[:2], -1),
            Grid(low=spec.qmin, high=spec.qmax, group_size=spec.group_size),
            self._feedback,
        )
        found = QuantizedWeight(
            codes=codes.reshape(start.codes.shape).to(torch.int8),
            scale=scale.reshape(start.scale.shape).contiguous(),
            spec=spec,
        )
        real = found.dequantize().reshape(shape).double()
        shifts = [place.shift(real) for place in self.places]
        return [(found, ChannelFit(gain=torch.ones_like(s), shift=s)) for s in shifts]


def shrinkage(squares: Tensor, draws: float) -> Tensor:
    """Return how much of the identity to mix into moments of few draws, [G], from 0 to 1.

    The moments of K inputs from as few draws as K say that some directions have no power, and
    codes that are fitted to them round those carelessly. The share is the one by which (1 − ρ) S +
    ρ tr(S)/K · I comes closest to the true moments of normal inputs (oracle approximating
    shrinkage, Chen et al., arXiv 0907.4698). What is mixed in pulls towards the float weight.

    Args:
        squares: Second moments S, float64 [G, K, K].
        draws: Independent draws that they are of.
    """
    width = squares.shape[-1]
    trace = squares.diagonal(dim1=1, dim2=2).sum(1)
    power = squares.square().sum((1, 2))
    above = (1 - 2 / width) * power + trace.square()
    below = (draws + 1 - 2 / width) * (power - trace.square() / width)
    return torch.where(above < below, above / below.clamp_min(1e-300), 1.0)

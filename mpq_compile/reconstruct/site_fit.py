"""Codes, scale and shift of one site at any width, of the moments that were gathered there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mpq_compile.quant.weights import ChannelFit, QuantizedWeight
from mpq_compile.reconstruct.correction import FEWEST
from mpq_compile.reconstruct.integer_least_squares import Feedback, Grid, solve
from mpq_compile.reconstruct.moments import Moments, Reader
from mpq_compile.reconstruct.rounded_site import check_finite

# What pulls towards the float weight, as a share of the mean power of the inputs.
_DAMPING = 0.01
_LEAST_POWER = 1e-12

SiteFit = tuple[QuantizedWeight, ChannelFit]


@dataclass(frozen=True, kw_only=True)
class SiteProblem:
    """What the codes of a site should come close to; it serves every width of its weight.

    Args:
        target: The weight that reproduces the outputs best, w*, float32 [G, n, K].
        metric: H, the second moments of inputs, damped, float32 [G, K, K].
        inputs, outputs: Means, float64 [G, K] and [G, n].
        bias: The float bias, float32 [N].
        biased: Whether the site has one: then moments are about the means, else about zero.
    """

    target: Tensor
    metric: Tensor
    inputs: Tensor
    outputs: Tensor
    bias: Tensor
    biased: bool

    @classmethod
    def of(cls, site: str, reader: Reader, moments: Moments, bias: Tensor) -> SiteProblem | None:
        """Return the problem of a site; None where it saw fewer than 64 values of a channel.

        Raises:
            CalibrationError: What it saw is not finite.
        """
        if moments.count < FEWEST:
            return None
        check_finite(site, moments.squares, moments.crosses)
        biased = reader.node.args[2] is not None
        squares, crosses = moments.centred(about_mean=biased)
        rows = reader.rows
        # Inputs that never vary are held where they are.
        power = squares.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_LEAST_POWER)
        ridge = (_DAMPING * power)[:, None, None]
        damped = squares + ridge * torch.eye(rows.shape[-1], dtype=torch.float64)
        target = torch.linalg.solve(damped, crosses + ridge * rows.double(), left=False)
        inputs, outputs = moments.means()
        return cls(
            target=target.float(),
            metric=damped.float(),
            inputs=inputs,
            outputs=outputs,
            bias=bias,
            biased=biased,
        )

    @cached_property
    def _feedback(self) -> Feedback:
        return Feedback(self.metric)

    def fit(self, start: QuantizedWeight) -> SiteFit:
        """Return codes and scales no farther from the target than ``start``, and the shift.

        Args:
            start: The weight rounded to nearest.
        """
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
        shift = torch.zeros_like(self.bias)
        if self.biased:
            real = found.dequantize().reshape(shape).double()
            given = (real @ self.inputs[..., None]).squeeze(-1)
            shift = (self.outputs - given).flatten().float() - self.bias
        return found, ChannelFit(gain=torch.ones_like(shift), shift=shift)

"""Quantizers whose step sizes are trained (LSQ, Esser et al., arXiv 1902.08153).

    ŵ = s · clamp(round(w / s), qmin, qmax)

Rounding has gradient one (straight through), clamping has its own; so ∂ŵ/∂s is round(w/s) − w/s
inside the range and the bound outside. The method divides the gradient of s by √(N · qmax), which
changes nothing under an optimizer that is invariant to the scale of a gradient, such as Adam. The
logarithm of s is trained, so that a step stays positive and moves by a share of itself [derived].

So are activations. Of a weight, w / s is the parameter instead of w: the straight-through gradients
are the same in other coordinates, and the slope of s is exact while no code changes [derived].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import QParams

# How far inside the cell of its code a weight starts, in steps: at the edge it would flip at once.
_INSIDE = 0.49


class _Round(torch.autograd.Function):
    """Codes of ``x / scale + zero point``, clamped, back to real values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
        real = x / scale
        ctx.save_for_backward(real, scale)
        ctx.bounds = (low - zero_point, high - zero_point)
        return real.round().clamp_(*ctx.bounds).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        real, scale = ctx.saved_tensors
        low, high = ctx.bounds
        inside = (real >= low) & (real <= high)
        codes = real.round().clamp_(low, high)
        slope = torch.where(inside, codes - real, codes)
        return grad * inside, (grad * slope).sum_to_size(scale.shape), None, None, None


def fake_quantize_learned(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """Round ``x`` to codes in [low, high] and back, with LSQ's gradients.

    Args:
        x: float32, any shape.
        scale: float32, of a shape that broadcasts to that of ``x``; positive.
        zero_point: Code of zero.
        low, high: Least and largest code.
    """
    found: Tensor = _Round.apply(x, scale, zero_point, low, high)
    return found


class LearnedWeight(nn.Module):
    """A weight and its scales, one a row or one for each group of its inputs.

    Args:
        weight: float32 [N, ...].
        start: Codes and scales to start from. Each weight starts as near to its float value as
            the code that it has allows: what a search of codes found is kept, and training can
            take it back where that is better [derived].
    """

    def __init__(self, weight: Tensor, start: QuantizedWeight) -> None:
        super().__init__()
        self.spec, self.shape = start.spec, weight.shape
        scale = start.scale.reshape(len(weight), -1, 1)
        codes = start.codes.reshape(*scale.shape[:2], -1).float()
        real = weight.reshape(codes.shape).float() / scale
        self.codes = nn.Parameter(torch.clamp(real, codes - _INSIDE, codes + _INSIDE))
        self.log_scale = nn.Parameter(scale.log())

    def forward(self) -> Tensor:
        """Return the rounded weight, float32 of the weight's shape."""
        one = torch.ones(())
        codes = fake_quantize_learned(self.codes, one, 0, self.spec.qmin, self.spec.qmax)
        return (codes * self.log_scale.exp()).reshape(self.shape)

    def quantized(self) -> QuantizedWeight:
        """Return codes and scales as they are."""
        scale = self.log_scale.detach().exp()
        codes = self.codes.detach().round().clamp(self.spec.qmin, self.spec.qmax)
        shape = (self.shape[0],) if self.spec.group_size is None else (self.shape[0], -1)
        return QuantizedWeight(
            codes=codes.reshape(self.shape).to(torch.int8),
            scale=scale.reshape(shape).contiguous(),
            spec=self.spec,
        )


class LearnedRange(nn.Module):
    """The scale of a tensor; its zero point stays what calibration found."""

    def __init__(self, start: QParams) -> None:
        super().__init__()
        self.start, self.spec = start, start.spec
        self.log_scale = nn.Parameter(torch.tensor(start.scale).log())

    def forward(self, x: Tensor) -> Tensor:
        """Return the rounded values, float32."""
        spec, scale = self.spec, self.log_scale.exp()
        return fake_quantize_learned(x, scale, self.start.zero_point, spec.qmin, spec.qmax)

    def qparams(self) -> QParams:
        """Return the qparams as they are."""
        return QParams(
            spec=self.spec,
            scale=float(self.log_scale.detach().exp()),
            zero_point=self.start.zero_point,
        )


class LearnedBias(nn.Module):
    """A bias, trained in steps of the output that it is added to.

    Args:
        bias: float32 [N].
        step: Distance of two codes of the output.
    """

    def __init__(self, bias: Tensor, step: float) -> None:
        super().__init__()
        self.start: Tensor
        self.register_buffer("start", bias)
        self.step = step
        self.moved = nn.Parameter(torch.zeros_like(bias))

    def forward(self) -> Tensor:
        """Return the bias, float32 [N]."""
        bias: Tensor = self.start + self.step * self.moved
        return bias


class Straight(nn.Module):
    """A change of format without parameters; gradients pass as if it were not there."""

    def __init__(self, rounded: Any) -> None:
        super().__init__()
        self._rounded = rounded

    def forward(self, x: Tensor) -> Tensor:
        """Return ``rounded(x)``."""
        found: Tensor = x + (self._rounded(x) - x).detach()
        return found

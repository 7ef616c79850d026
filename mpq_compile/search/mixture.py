"""A tensor rounded in several ways at once, with gradients through the rounding.

    y = Σ_b π_b Q_b(x)        ∂y/∂x ≈ Σ_b π_b [x within the range of Q_b]        ∂y/∂π_b = Q_b(x)

The first derivative is the straight-through estimate (arXiv 1308.3432), which stops where codes
end; that of the shares π is exact. What is kept for the way back is x alone: it is rounded again
there, so that more branches take more time but no more memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mpq_compile.quant.observers import fake_quantize
from mpq_compile.quant.reference import fake_quantize_rows
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import QParams


class Rounder(Protocol):
    """One branch: a rounding, and where its gradient passes."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` rounded, of its shape."""

    def passes(self, x: Tensor) -> Tensor | float:
        """Return 1 where codes follow ``x``, 0 where they are saturated."""


@dataclass(frozen=True, kw_only=True)
class Exact:
    """fp32: nothing is rounded."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def passes(self, x: Tensor) -> Tensor | float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Bfloat16:
    """bf16 and back."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    def passes(self, x: Tensor) -> Tensor | float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Activations whose ranges are found row by row, which saturate nowhere."""

    def __call__(self, x: Tensor) -> Tensor:
        return fake_quantize_rows(x)

    def passes(self, x: Tensor) -> Tensor | float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class ActivationCodes:
    """Unsigned affine codes of a calibrated range."""

    qparams: QParams

    def __call__(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.qparams)

    def passes(self, x: Tensor) -> Tensor | float:
        scale, zero_point = self.qparams.scale, self.qparams.zero_point
        low, high = -zero_point * scale, (self.qparams.spec.qmax - zero_point) * scale
        return ((x >= low) & (x <= high)).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class WeightCodes:
    """Signed symmetric codes with scales that are held.

    Args:
        scale: float32, one for each weight, of the weight's shape.
        low, high: The least and the largest code.
    """

    scale: Tensor
    low: int
    high: int

    @classmethod
    def like(cls, weight: QuantizedWeight) -> WeightCodes:
        """Return a rounder with the scales of a rounded weight."""
        codes, scale = weight.codes, weight.scale
        rows = scale.reshape(codes.shape[0], -1, 1)
        size = codes.numel() // (rows.shape[0] * rows.shape[1])
        spread = rows.expand(-1, -1, size).reshape(codes.shape)
        return cls(scale=spread, low=weight.spec.qmin, high=weight.spec.qmax)

    def __call__(self, x: Tensor) -> Tensor:
        return (x / self.scale).round_().clamp_(self.low, self.high).mul_(self.scale)

    def passes(self, x: Tensor) -> Tensor | float:
        return ((x >= self.low * self.scale) & (x <= self.high * self.scale)).to(x.dtype)


class _Mixture(torch.autograd.Function):
    """The sum over branches; see the module for its derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor, rounders: Sequence[Rounder]) -> Tensor:
        ctx.save_for_backward(x, shares)
        ctx.rounders = rounders
        total = torch.zeros_like(x)
        for share, rounder in zip(shares, rounders, strict=True):
            total.addcmul_(rounder(x), share)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, shares = ctx.saved_tensors
        passed, products = torch.zeros_like(x), []
        for share, rounder in zip(shares, ctx.rounders, strict=True):
            products.append((slope * rounder(x)).sum())
            passed += share * rounder.passes(x)
        return slope * passed, torch.stack(products), None


def mixture(x: Tensor, shares: Tensor, rounders: Sequence[Rounder]) -> Tensor:
    """Return Σ_b shares[b] · rounders[b](x).

    Args:
        x: Floats of any shape.
        shares: [branches], of the type of ``x``; not negative, their sum is 1.
        rounders: One for each branch.
    """
    mixed: Tensor = _Mixture.apply(x, shares, tuple(rounders))
    return mixed

"""Gradients of a step: the plain one, or one that looks for a flat place.

A policy that is to hold on other data should not hang on the exact weights that it was searched
with. The sharpness-aware step of SAGM (arXiv 2303.10353), which ASGA (arXiv 2505.04877) builds on,
lowers the loss at θ and at a place uphill of it, and aligns the gradients of both [source: the code
of SAGM]:

    g₁ = ∇L(θ)        e = (ρ / ‖g₁‖ − α) g₁        g₂ = ∇L(θ + e)        g = ½ g₁ + ½ g₂

with ρ = 0.05 and α = 0.001. The radius follows the rise h = max(0, L(θ + e) − L(θ)) [derived]:

    ρ ← min(ρ_max, max(ρ_min, ln(1 + h)))

Without the floor ρ_min a flat place would end the search for a flatter one for good. Only weights
move uphill, not the logits of branches: it is the policy that shall bear other weights [derived].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Loss = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step rule found.

    Args:
        loss: At the place itself.
        weights: Gradient of each weight.
        logits: Gradient of each logit tensor.
        radius: ρ of the next step.
    """

    loss: float
    weights: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    radius: float


class StepRule(Protocol):
    """Finds the gradients of a step; ``radius`` is ρ of the first.

    A call evaluates ``loss`` once or more, leaves all values as they were, and sets no ``.grad``.
    ``statistics`` are buffers that a pass updates, those of batch norms: they see the first alone.
    """

    @property
    def radius(self) -> float: ...

    def __call__(
        self,
        loss: Loss,
        weights: Sequence[Tensor],
        logits: Sequence[Tensor],
        radius: float,
        statistics: Sequence[Tensor] = (),
    ) -> Step: ...


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The gradient of the loss."""

    radius: float = 0.0

    def __call__(
        self,
        loss: Loss,
        weights: Sequence[Tensor],
        logits: Sequence[Tensor],
        radius: float,
        statistics: Sequence[Tensor] = (),
    ) -> Step:
        value, gradients = _gradients(loss, [*weights, *logits])
        count = len(weights)
        return Step(loss=value, weights=gradients[:count], logits=gradients[count:], radius=radius)


@dataclass(frozen=True, kw_only=True)
class SharpnessAware:
    """The mean of the gradients here and uphill (see the module).

    Args:
        radius: ρ of the first step [source].
        alignment: α [source].
        least_radius, most_radius: Bounds of the radius that follow [derived].
    """

    radius: float = 0.05
    alignment: float = 1e-3
    least_radius: float = 0.005
    most_radius: float = 0.1

    def __call__(
        self,
        loss: Loss,
        weights: Sequence[Tensor],
        logits: Sequence[Tensor],
        radius: float,
        statistics: Sequence[Tensor] = (),
    ) -> Step:
        parameters, count = [*weights, *logits], len(weights)
        value, here = _gradients(loss, parameters)
        before = [weight.detach().clone() for weight in weights]
        seen = [buffer.clone() for buffer in statistics]
        try:
            _add(weights, self._uphill(here[:count], radius))
            raised, there = _gradients(loss, parameters)
        finally:
            _put([*weights, *statistics], [*before, *seen])
        mean = tuple((a + b) / 2 for a, b in zip(here, there, strict=True))
        return Step(
            loss=value,
            weights=mean[:count],
            logits=mean[count:],
            radius=self.next_radius(value, raised),
        )

    def _uphill(self, gradients: Sequence[Tensor], radius: float) -> list[Tensor]:
        length = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        factor = radius / length - self.alignment if length > 0 else 0.0
        return [factor * g for g in gradients]

    def next_radius(self, loss: float, raised: float) -> float:
        """Return ρ after the loss went from ``loss`` to ``raised`` uphill."""
        follows = math.log1p(max(0.0, raised - loss))
        return min(self.most_radius, max(self.least_radius, follows))


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the buffers that a pass in training mode updates: those of batch norms."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def _gradients(loss: Loss, parameters: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
    """Return the loss and its gradients; zeros for what it does not depend on."""
    value = loss()
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    gradients = tuple(torch.zeros_like(p) if g is None else g for g, p in pairs)
    return float(value.detach()), gradients


@torch.no_grad()
def _add(values: Sequence[Tensor], changes: Sequence[Tensor]) -> None:
    for value, change in zip(values, changes, strict=True):
        value.add_(change)


@torch.no_grad()
def _put(values: Sequence[Tensor], contents: Sequence[Tensor]) -> None:
    for value, content in zip(values, contents, strict=True):
        value.copy_(content)

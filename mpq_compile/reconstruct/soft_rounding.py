"""Codes that lie between two neighbours while it is searched which of them to take.

    w = s · clamp(⌊w/s⌋ + h(V)),    h(V) = clamp(σ(V) (ζ − γ) + γ, 0, 1),    ζ = 1.1, γ = −0.1

V starts where the soft weight is the float one, and the penalty

    mean (1 − |2 h(V) − 1|^β)

drives each h to 0 or 1 while β falls from 20 to 2; over the first fifth of the steps there is none
(AdaRound, Nagel et al., arXiv 2004.10568, with its constants). Losses are counted in what the
nearest codes lose, and the penalty is a mean instead of a sum, so that one weight of it serves
layers of any size [derived].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpq_compile.quant.weights import QuantizedWeight

_ZETA, _GAMMA = 1.1, -0.1
# A weight on its lower code starts here: at 0 the rectified sigmoid has no gradient.
_EDGE = 0.01


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """How soft codes become hard ones.

    Args:
        steps: Steps of Adam.
        rate: Its rate for V.
        penalty: Weight of the penalty against the loss.
        warmup: Share of the steps without it.
        betas: Its exponent, at first and at last.
        seed: Of everything that is drawn.
    """

    steps: int
    rate: float = 1e-2
    penalty: float = 0.1
    warmup: float = 0.2
    betas: tuple[float, float] = (20.0, 2.0)
    seed: int = 0

    def pull(self, step: int, soft: SoftRounding) -> Tensor:
        """Return the weighted penalty of a step; zero during the warm-up."""
        first = int(self.warmup * self.steps)
        if step < first:
            return torch.zeros(())
        done = (step - first) / max(self.steps - first, 1)
        high, low = self.betas
        return self.penalty * soft.penalty(high + (low - high) * done)


class SoftRounding(nn.Module):
    """The weight of one site while its rounding is searched.

    Args:
        weight: The float weight, float32 [N, ...].
        nearest: Its nearest codes, whose scales stay as they are.
    """

    def __init__(self, weight: Tensor, nearest: QuantizedWeight) -> None:
        super().__init__()
        self._spec, self._scale = nearest.spec, nearest.scale
        self._steps = spread_scale(nearest.scale, weight)
        real = (weight.detach().float() / self._steps).clamp(nearest.spec.qmin, nearest.spec.qmax)
        self._lower = real.floor().clamp(max=nearest.spec.qmax - 1)
        share = (real - self._lower).clamp(_EDGE, 1 - _EDGE)
        self.choice = nn.Parameter(torch.logit((share - _GAMMA) / (_ZETA - _GAMMA)))

    def share(self) -> Tensor:
        """Return h(V), how far each code is towards the upper of its two, in [0, 1]."""
        return (self.choice.sigmoid() * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def forward(self) -> Tensor:
        """Return the weight as it is now, float32."""
        return (self._lower + self.share()) * self._steps

    def penalty(self, beta: float) -> Tensor:
        """Return the mean of 1 − |2 h − 1|^β."""
        return (1 - (2 * self.share() - 1).abs().pow(beta)).mean()

    @torch.no_grad()
    def hardened(self) -> QuantizedWeight:
        """Return the weight with each code at the nearer of its two."""
        codes = self._lower + (self.share() >= 0.5)
        return QuantizedWeight(codes=codes.to(torch.int8), scale=self._scale, spec=self._spec)


def spread_scale(scale: Tensor, like: Tensor) -> Tensor:
    """Return the scale of each weight in the shape of the weight: [N] or [N, groups] → [N, ...]."""
    rows = like.shape[0]
    groups = 1 if scale.dim() == 1 else scale.shape[1]
    flat = scale.reshape(rows, groups, 1)
    return flat.expand(rows, groups, like[0].numel() // groups).reshape(like.shape)

"""How a policy is searched."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpq_compile.errors import PlanError
from mpq_compile.registry import SEARCHES


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a policy is searched; policies record it.

    Weights go by stochastic gradient descent as in the baselines [source: momentum 0.9, weight
    decay 1e-4]; their rate falls along half a cosine from 0.01, because the network is trained
    already [derived; the baselines start at 0.1]. Logits go by Adam [derived; the baselines take
    plain steps of 0.01]: on small data there are hundreds of steps, not a hundred thousand, and
    gradients of early and late sites differ by orders of magnitude.

    Args:
        method: A name of ``SEARCHES``: "asga" (sharpness-aware) or "plain".
        bops: Bound on Σ MACs · weight bits · activation bits, for the example's batch.
        price: λ of the published loss, instead of a bound: nats for a complexity of one.
        epochs: Passes over the data.
        batch: Samples of a step; a network that fixes its batch takes that.
        weight_rate, logit_rate: Step sizes of the weights, at the start, and of the logits.
        momentum, weight_decay: Of the weights.
        seed: Of the order of samples.

    Raises:
        PlanError: Neither bound nor price is given, or both, or a number is out of range.
        MpqError: The method is unknown.
    """

    method: str = "asga"
    bops: float | None = None
    price: float | None = None
    epochs: int = 10
    batch: int = 32
    weight_rate: float = 0.01
    logit_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        SEARCHES.load(self.method)
        if (self.bops is None) == (self.price is None):
            raise PlanError(
                "a search must know what bits may cost",
                expected="a bound on BOPs, or a price of them",
                found="neither" if self.bops is None else "both",
                remedy="give budget=Budget(bops=...)",
            )
        for name in ("epochs", "batch", "weight_rate", "logit_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise PlanError(
                    f"{name} must be positive",
                    expected="a finite number above 0",
                    found=repr(getattr(self, name)),
                    remedy="correct the number, or leave it out",
                )

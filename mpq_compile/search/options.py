"""How a policy is searched."""

from __future__ import annotations

from dataclasses import dataclass

from mpq_compile.errors import PlanError
from mpq_compile.registry import SEARCHES
from mpq_compile.training.loss import check_loss
from mpq_compile.training.positive import check_count, check_rate


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How a policy is searched; policies record it.

    Weights and logits go by Adam [derived; the baselines take plain steps with momentum, 0.1 for
    weights and 0.01 for logits, for a hundred thousand steps]: a search on little data has hundreds
    of steps, gradients of early and late sites differ by orders of magnitude, and batch norms,
    which would make up for that, are folded. The rate of the weights falls along half a cosine.

    Args:
        method: A name of ``SEARCHES``: "asga" (sharpness-aware) or "plain".
        bops: Bound on Σ MACs · weight bits · activation bits, for the example's batch.
        price: λ of the published loss, instead of a bound: nats for a complexity of one.
        loss: "labels" [source]; "distillation" from the float network needs none [derived].
        epochs: Passes over the data.
        weight_rate: Largest move of a weight in a step, as a share of its tensor's root mean
            square.
        logit_rate: Largest move of a logit.

    Raises:
        PlanError: Neither bound nor price is given, or both, or a number is out of range.
        MpqError: The method or the loss is unknown.
    """

    method: str = "asga"
    bops: float | None = None
    price: float | None = None
    loss: str = "labels"
    epochs: int = 10
    weight_rate: float = 0.002
    logit_rate: float = 0.05

    def __post_init__(self) -> None:
        SEARCHES.load(self.method)
        check_loss(self.loss)
        if (self.bops is None) == (self.price is None):
            raise PlanError(
                "a search must know what bits may cost",
                expected="a bound on BOPs, or a price of them",
                found="neither" if self.bops is None else "both",
                remedy="give budget=Budget(bops=...)",
            )
        check_count("epochs", self.epochs)
        check_rate("weight_rate", self.weight_rate)
        check_rate("logit_rate", self.logit_rate)

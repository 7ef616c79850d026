"""What bits cost during a search.

    L = loss + λ · complexity                               [source: EdMIPS, GMPQ], λ is given
    L = loss + κ/2 · max(0, complexity / budget − 1)²       [derived], a budget is given

A fixed λ says nothing to a user and means another thing in each network; a budget does not. The
square has the slope λ = κ (complexity / budget − 1) / budget: it is steep while the expected cost
is far above the budget, and settles where a bit is worth to the loss what it costs. Nothing adds up
over steps, so that the cost does not swing about the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

# κ: nats for a cost of twice the budget.
_SLOPE = 2.0


@dataclass(frozen=True, kw_only=True)
class Price:
    """What complexity costs at a step.

    Args:
        limit: Complexity that the budget allows; None where the price is fixed.
        fixed: λ of the published loss, nats for a complexity of one.
    """

    limit: float | None
    fixed: float = 0.0

    def at(self, complexity: float) -> float:
        """Return λ, nats for a complexity of one, where the network has ``complexity``."""
        if self.limit is None:
            return self.fixed
        return _SLOPE * max(0.0, complexity / self.limit - 1) / self.limit

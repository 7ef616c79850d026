"""What bits cost during a search.

    L = loss + λ · complexity                   [source: EdMIPS, GMPQ], λ is given
    L = loss + λ_t · complexity / budget        [derived], λ_t follows the budget

A fixed λ says nothing to a user and means another thing in each network; a budget does not. For
one, the price is raised while the expected cost is above it and lowered while it is below, as in
the method of multipliers: with h = complexity / budget − 1,

    λ_t = max(0, μ_t + κ h)        μ_{t+1} = max(0, μ_t + η h)
"""

from __future__ import annotations

from dataclasses import dataclass

# κ and η: nats for a cost of twice the budget, at once, and more after each step that it stays.
_GAIN, _RATE = 1.0, 0.1


@dataclass(frozen=True, kw_only=True)
class Price:
    """What complexity costs at a step.

    Args:
        limit: Complexity that the budget allows; None where the price is fixed.
        fixed: λ of the published loss, nats for a complexity of one.
        pressure: μ, nats.
    """

    limit: float | None
    fixed: float = 0.0
    pressure: float = 0.0

    def at(self, complexity: float) -> float:
        """Return nats for a complexity of one, where the network has ``complexity``."""
        if self.limit is None:
            return self.fixed
        return max(0.0, self.pressure + _GAIN * self._excess(complexity)) / self.limit

    def pressure_after(self, complexity: float) -> float:
        """Return μ of the next step."""
        return max(0.0, self.pressure + _RATE * self._excess(complexity))

    def _excess(self, complexity: float) -> float:
        return 0.0 if self.limit is None else complexity / self.limit - 1

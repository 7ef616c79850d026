"""PPSO: a particle swarm with a penalty for what exceeds the budget (method 0, arXiv 2412.03101).

[derived] from the abstract: fitness(b) = f(b) + μ_t Σ max(0, C(b) − B)², with μ_t that never
falls. The answer comes from particles within the budget only.
"""

from __future__ import annotations

import numpy as np

from mpq_compile.solve.landscape import Landscape
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.swarm import Rng, SwarmOptions, solve_by_swarm
from mpq_compile.solve.tables import Floats, Ints

# μ grows from this many times the spread of the losses seen to that many; an excess is counted
# in parts of the spread of its axis.
FIRST, LAST = 1.0, 1000.0


class Penalty:
    """Particles go anywhere; an excess costs μ_t times its square."""

    def __init__(self) -> None:
        self.weight = 0.0

    def place(self, landscape: Landscape, levels: Ints, rng: Rng) -> Ints:
        """Return the levels as they are."""
        return levels

    def fitness(self, loss: Floats, excess: Floats, progress: float) -> Floats:
        """Return loss + μ_t Σ excess²; infinite where nothing was evaluated yet."""
        seen = loss[np.isfinite(loss)]
        if len(seen):
            grown = FIRST * (LAST / FIRST) ** progress * max(float(np.ptp(seen)), 1e-300)
            self.weight = max(self.weight, grown)
        violation = np.square(excess).sum(axis=1)
        return np.where(np.isfinite(loss), loss + self.weight * violation, np.inf)


def solve_ppso(
    problem: Problem,
    *,
    time_limit_s: float | None = None,
    seed: int = 0,
    options: SwarmOptions | None = None,
) -> Solution:
    """Return the best assignment within the budget that a penalised swarm meets, and a bound.

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    return solve_by_swarm(
        problem,
        lambda start: Penalty(),
        solver="ppso",
        seed=seed,
        options=options or SwarmOptions(),
        time_limit_s=time_limit_s,
    )

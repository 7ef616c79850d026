"""GC-PSO: a swarm whose particles are repaired before evaluation (method 0, arXiv 2412.03101).

[derived] from the abstract ("greedy criterion"): while C(b) > B, drop the bit with the smallest
rise of the loss per cost that it frees; while slack remains, add the bit with the largest fall of
the loss per cost. So every evaluation is within the budget. On separable problems this is the
greedy method in disguise; the swarm earns its place where a bit's worth depends on the others.

Steps are taken several at a time while they make up less than half of what is missing (or left):
a repair then takes a number of rounds that grows with the logarithm of the excess.
"""

from __future__ import annotations

import numpy as np

from mpq_compile.solve.landscape import Landscape, Steps
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.swarm import Rng, SwarmOptions, solve_by_swarm
from mpq_compile.solve.tables import Bools, Floats, Ints

# Rounds after which a particle that still exceeds the budget is given up.
MAX_ROUNDS = 100


class Repair:
    """Particles are brought within the budget, and then use what is left of it.

    Args:
        safe: (G,) levels that fit: they stand in for a particle that no step brings within.
        noise: Spread of a factor exp(noise · normal) on each step's score, drawn anew for each
            particle: where scores are guesses, particles should not all guess alike.
    """

    def __init__(self, safe: Ints, noise: float = 0.0) -> None:
        self.safe, self.noise = safe, noise

    def place(self, landscape: Landscape, levels: Ints, rng: Rng) -> Ints:
        """Return repaired levels (P, G)."""
        factor = np.exp(self.noise * rng.standard_normal(levels.shape)) if self.noise else None
        levels = drop(landscape, levels, factor)
        levels = add(landscape, levels, factor)
        over = np.any(landscape.worth(levels)[1] > landscape.limit, axis=1)
        return np.where(over[:, None], self.safe, levels)

    def fitness(self, loss: Floats, excess: Floats, progress: float) -> Floats:
        """Return the loss: every particle is within the budget."""
        return loss


def drop(landscape: Landscape, levels: Ints, factor: Floats | None = None) -> Ints:
    """While particles exceed the limits, take the steps that cost least loss per excess removed.

    A step is one level down or, where a pair makes that cheaper, one level up.
    """
    levels = levels.copy()
    for _ in range(MAX_ROUNDS):
        _, usage = landscape.worth(levels)
        over: Floats = np.maximum(usage - landscape.limit, 0.0)
        active = np.flatnonzero(np.any(over > 0, axis=1))
        if not len(active):
            break
        noise = None if factor is None else factor[active]
        missing = over[active] / landscape.spread
        changed = _step(landscape, levels[active], -1, missing, noise)
        stuck = (changed == levels[active]).all(axis=1)
        if landscape.tables.pairs and stuck.any():
            changed[stuck] = _step(
                landscape,
                levels[active][stuck],
                1,
                missing[stuck],
                None if noise is None else noise[stuck],
            )
        if (changed == levels[active]).all():
            break
        levels[active] = changed
    return levels


def _step(
    landscape: Landscape, levels: Ints, by: int, missing: Floats, factor: Floats | None
) -> Ints:
    """Take the best steps that remove at most half of what is missing (P, D + 1), one at least."""
    steps = landscape.steps(levels, by)
    change = steps.usage / landscape.spread
    # What a step adds where nothing is missing is not counted: later rounds see to it.
    relief = np.minimum(-change, missing[:, None, :])
    relief = np.where(missing[:, None, :] > 0, relief, np.minimum(-change, 0.0)).sum(axis=2)
    useful = steps.possible & (relief > 1e-15)
    score = _per_cost(steps.loss, relief, useful, factor)
    return levels + by * _leading(score, useful, relief, missing.sum(axis=1))


def add(landscape: Landscape, levels: Ints, factor: Floats | None = None) -> Ints:
    """While slack remains, take the steps up that lower the loss most per cost."""
    levels = levels.copy()
    active = np.arange(len(levels))
    for _ in range(MAX_ROUNDS):
        _, usage = landscape.worth(levels[active])
        slack = landscape.limit - usage
        # A particle over the limit is not to be filled.
        inside = (slack >= 0).all(axis=1)
        active, usage, slack = active[inside], usage[inside], slack[inside]
        if not len(active):
            break
        noise = None if factor is None else factor[active]
        taken = _fill(landscape.steps(levels[active], 1), slack, landscape.spread, noise)
        moved = taken.any(axis=1)
        active = active[moved]
        levels[active] += taken[moved]
    return levels


def _fill(steps: Steps, slack: Floats, spread: Floats, factor: Floats | None) -> Ints:
    """Return 1 for the best steps that use at most half of each slack (P, D + 1), one at least."""
    fitting = (steps.usage <= slack[:, None, :]).all(axis=2)
    useful = steps.possible & fitting & (steps.loss < 0)
    cost = np.maximum(steps.usage / spread, 0.0).sum(axis=2)
    score = _per_cost(steps.loss, cost, useful, factor)
    room = np.where(slack > 0, slack, np.inf) / spread
    share = (steps.usage / spread / room.clip(1e-300)[:, None, :]).max(axis=2)
    return _leading(score, useful, share, np.ones(len(slack)))


def _per_cost(loss: Floats, cost: Floats, useful: Bools, factor: Floats | None) -> Floats:
    """Return Δloss / cost, the least first; what brings a fall at no cost comes before all."""
    ratio = loss / np.maximum(cost, 1e-300)
    if factor is not None:
        ratio = ratio * factor
    return np.where(useful, ratio, np.inf)


def _leading(score: Floats, useful: Bools, amount: Floats, whole: Floats) -> Ints:
    """Return 1 (P, G) for the first steps by score whose amounts sum to at most half of ``whole``.

    The very first is taken in any case.
    """
    order = np.argsort(score, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(np.where(useful, amount, 0.0), order, axis=1), axis=1)
    chosen = sums <= whole[:, None] / 2
    chosen[:, 0] = True
    # What comes after a step that is too large waits for the next round.
    chosen = np.logical_and.accumulate(chosen, axis=1)
    taken = np.zeros(score.shape, dtype=np.int64)
    np.put_along_axis(taken, order, chosen.astype(np.int64), axis=1)
    return taken * useful


def solve_gcpso(
    problem: Problem,
    *,
    time_limit_s: float | None = None,
    seed: int = 0,
    options: SwarmOptions | None = None,
) -> Solution:
    """Return the best assignment that a swarm of repaired particles meets, and a bound.

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    return solve_by_swarm(
        problem,
        Repair,
        solver="gcpso",
        seed=seed,
        options=options or SwarmOptions(),
        time_limit_s=time_limit_s,
    )

"""GC-PSO: a swarm whose particles are repaired before evaluation (method 0, arXiv 2412.03101).

[derived] from the abstract ("greedy criterion"): while C(b) > B, drop the bit with the smallest
rise of the loss per cost that it frees; while slack remains, add the bit with the largest fall of
the loss per cost. A move of up to three bits is weighed as one. So every evaluation is within the
budget. On separable problems this is the greedy method in disguise; the swarm earns its place
where a bit's worth depends on the others.

Moves are made several at a time while they make up less than half of what is missing (or left):
a repair then takes a number of rounds that grows with the logarithm of the excess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.landscape import Landscape
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.swarm import Rng, SwarmOptions, solve_by_swarm
from mpq_compile.solve.tables import Bools, Floats, Ints

# Levels that a move may go: one alone would stop before a bit that gains nothing by itself.
UP, DOWN = range(1, 4), range(-1, -4, -1)
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


@dataclass(frozen=True, kw_only=True)
class Moves:
    """A change of level for each variable of each particle, all (P, G).

    Attributes:
        by: Levels up or down.
        score: Change of the loss per cost, the least first; infinite where it is of no use.
        amount: What it removes of the excess, or uses of the slack.
    """

    by: Ints
    score: Floats
    amount: Floats


def drop(landscape: Landscape, levels: Ints, factor: Floats | None = None) -> Ints:
    """While particles exceed the limits, take the moves that cost least loss per excess removed.

    A move is down or, where no move down of any variable helps and a pair may, up.
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
        change = _relieve(landscape, levels[active], DOWN, missing, noise)
        if landscape.tables.pairs:
            stuck = np.logical_not(np.any(change != 0, axis=1))
            up = _relieve(landscape, levels[active], UP, missing, noise)
            change[stuck] = up[stuck]
        if not change.any():
            break
        levels[active] += change
    return levels


def add(landscape: Landscape, levels: Ints, factor: Floats | None = None) -> Ints:
    """While slack remains, take the moves up that lower the loss most per cost."""
    levels = levels.copy()
    active = np.arange(len(levels))
    for _ in range(MAX_ROUNDS):
        _, usage = landscape.worth(levels[active])
        slack = landscape.limit - usage
        # A particle over the limit is not to be filled.
        inside = (slack >= 0).all(axis=1)
        active, slack = active[inside], slack[inside]
        if not len(active):
            break
        noise = None if factor is None else factor[active]
        change = _fill(landscape, levels[active], slack, noise)
        moved = change.any(axis=1)
        active = active[moved]
        levels[active] += change[moved]
    return levels


def _relieve(
    landscape: Landscape, levels: Ints, reach: range, missing: Floats, factor: Floats | None
) -> Ints:
    """Return the best changes that remove at most half of ``missing`` (P, D + 1), one at least."""

    def moves(by: int) -> Moves:
        steps = landscape.steps(levels, by)
        change = steps.usage / landscape.spread
        # What a move frees beyond what is missing does not count; what it adds elsewhere does.
        freed = np.minimum(-change, missing[:, None, :])
        relief = np.where(missing[:, None, :] > 0, freed, np.minimum(-change, 0.0)).sum(axis=2)
        useful = steps.possible & (relief > 1e-15)
        return _moves(by, steps.loss, relief, useful, relief, factor)

    return _leading(_best([moves(by) for by in reach]), missing.sum(axis=1))


def _fill(landscape: Landscape, levels: Ints, slack: Floats, factor: Floats | None) -> Ints:
    """Return the best changes that use at most half of each slack (P, D + 1), one at least."""
    room = np.maximum(np.where(slack > 0, slack, np.inf) / landscape.spread, 1e-300)

    def moves(by: int) -> Moves:
        steps = landscape.steps(levels, by)
        change = steps.usage / landscape.spread
        fitting = (steps.usage <= slack[:, None, :]).all(axis=2)
        useful = steps.possible & fitting & (steps.loss < 0)
        cost = np.maximum(change, 0.0).sum(axis=2)
        share = (change / room[:, None, :]).max(axis=2)
        return _moves(by, steps.loss, cost, useful, share, factor)

    return _leading(_best([moves(by) for by in UP]), np.ones(len(slack)))


def _moves(
    by: int, loss: Floats, cost: Floats, useful: Bools, amount: Floats, factor: Floats | None
) -> Moves:
    ratio = loss / np.maximum(cost, 1e-300)
    if factor is not None:
        ratio = ratio * factor
    return Moves(
        by=np.full(loss.shape, by),
        score=np.where(useful, ratio, np.inf),
        amount=np.where(useful, amount, 0.0),
    )


def _best(options: Sequence[Moves]) -> Moves:
    """Return the move of least score for each variable, of equal ones the shortest."""
    at = np.argmin([m.score for m in options], axis=0)[None]
    by, score, amount = (
        np.take_along_axis(np.array([getattr(m, name) for m in options]), at, axis=0)[0]
        for name in ("by", "score", "amount")
    )
    return Moves(by=by, score=score, amount=amount)


def _leading(moves: Moves, whole: Floats) -> Ints:
    """Return the changes (P, G) of the first moves whose amounts sum to half of ``whole`` at most.

    The very first is made in any case.
    """
    order = np.argsort(moves.score, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(moves.amount, order, axis=1), axis=1)
    chosen = sums <= whole[:, None] / 2
    chosen[:, 0] = True
    # What comes after a move that is too large waits for the next round.
    chosen = np.logical_and.accumulate(chosen, axis=1)
    taken = np.zeros(chosen.shape, dtype=bool)
    np.put_along_axis(taken, order, chosen, axis=1)
    return np.where(taken & np.isfinite(moves.score), moves.by, 0)


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

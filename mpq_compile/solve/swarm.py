"""Particle swarms over bit-widths: what PPSO and GC-PSO share (method 0, arXiv 2412.03101).

Only the abstract of "Make the Best Use of Bits Where They Matter Most" (Fang et al.) is public:
everything here is [derived]. A particle's position x is real, its bits are the levels round(x):

    v ← ω v + c₁ r₁ (pbest − x) + c₂ r₂ (gbest − x),   |v| ≤ v_max,   x ← clip(x + v)

The deterministic iteration (φ = c₁r₁ + c₂r₂ constant) has the characteristic polynomial
λ² − (1 + ω − φ)λ + ω, whose roots lie inside the unit circle iff |ω| < 1 and 0 < φ < 2(1 + ω).
φ is (c₁ + c₂)/2 on average; constants whose average violates this are refused. The defaults are
Clerc and Kennedy's (2002).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mpq_compile.errors import PlanError
from mpq_compile.solve.feasible import prepare
from mpq_compile.solve.landscape import Landscape, build_landscape
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.tables import Floats, Ints

Rng = np.random.Generator
# Loss (P,) of levels (P, G).
Evaluate = Callable[[Ints], Floats]


@dataclass(frozen=True, kw_only=True)
class SwarmOptions:
    """Constants of a swarm.

    Args:
        particles: Number of particles.
        iterations: Moves of the swarm.
        inertia: ω.
        cognitive, social: c₁ and c₂.
        patience: Moves without improvement after which the particles are scattered anew; the
            best that was found is kept.
        scatters: So many scatterings in a row that find nothing better end the search.

    Raises:
        PlanError: The constants violate |ω| < 1 and 0 < (c₁ + c₂)/2 < 2(1 + ω): particles would
            run away. Where only the largest φ = c₁ + c₂ violates it, a warning says so.
    """

    particles: int = 32
    iterations: int = 200
    inertia: float = 0.7298
    cognitive: float = 1.496
    social: float = 1.496
    patience: int = 15
    scatters: int = 4

    def __post_init__(self) -> None:
        counts = (self.particles, self.iterations, self.patience, self.scatters)
        if min(counts) < 1:
            raise PlanError(
                "a swarm needs particles, iterations, patience and scatters",
                expected="whole numbers of at least 1",
                found=", ".join(map(str, counts)),
                remedy="leave them out for the defaults",
            )
        limit = 2 * (1 + self.inertia)
        largest = self.cognitive + self.social
        if not (abs(self.inertia) < 1 and 0 < largest / 2 < limit):
            raise PlanError(
                "the swarm's constants are unstable: its particles would run away",
                expected="|inertia| < 1 and 0 < (cognitive + social) / 2 < 2 (1 + inertia)",
                found=f"inertia {self.inertia:g}, cognitive + social {largest:g}",
                remedy="use 0.7298, 1.496 and 1.496",
            )
        if largest >= limit:
            warnings.warn(
                f"cognitive + social = {largest:g} is not below 2 (1 + inertia) = {limit:g}: "
                "particles are stable on average, but single moves diverge",
                stacklevel=3,
            )


class Method(Protocol):
    """What tells PPSO and GC-PSO apart."""

    def place(self, landscape: Landscape, levels: Ints, rng: Rng) -> Ints:
        """Return the levels (P, G) that are evaluated in place of ``levels``."""
        ...

    def fitness(self, loss: Floats, excess: Floats, progress: float) -> Floats:
        """Return what is minimised (P,), from the loss (P,) and the excess (P, D + 1)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best levels (G,) that fit, and their loss."""

    levels: Ints
    loss: float


class Swarm:
    """A run of one swarm.

    Args:
        landscape: Levels and budgets.
        method: PPSO or GC-PSO.
        evaluate: The objective.
        start: (G,) levels that fit; one particle begins there.
        known: Landscape whose losses a repair weighs steps by, asked for before each move.
    """

    def __init__(
        self,
        landscape: Landscape,
        method: Method,
        evaluate: Evaluate,
        start: Ints,
        *,
        options: SwarmOptions,
        rng: Rng,
        known: Callable[[], Landscape] | None = None,
    ) -> None:
        self.landscape, self.method, self.evaluate = landscape, method, evaluate
        self.options, self.rng, self.start = options, rng, start
        self.known = known or (lambda: landscape)
        self.top = landscape.counts - 1.0
        self.best: Best | None = None
        self.scatters = 0
        self.scatter()
        self.x[0] = start

    def scatter(self) -> None:
        """Give the particles new places and velocities, and no memory."""
        shape = (self.options.particles, len(self.top))
        self.x = np.rint(self.rng.uniform(-0.5, 0.5, shape) + self.rng.random(shape) * self.top)
        self.x = np.clip(self.x, 0.0, self.top)
        self.v = self.rng.uniform(-0.5, 0.5, shape) * self.top
        self.own = self.x.copy()
        self.own_loss = np.full(shape[0], np.inf)
        self.own_excess = np.full((shape[0], len(self.landscape.limit)), np.inf)
        self.still, self.least = 0, np.inf

    def move(self, progress: float) -> None:
        """Evaluate all particles, remember the best, and move; ``progress`` runs from 0 to 1."""
        levels = self.method.place(self.known(), np.rint(self.x).astype(np.int64), self.rng)
        # A repaired particle is where its bits are.
        self.x = np.where(levels == np.rint(self.x), self.x, levels)
        loss = self.evaluate(levels)
        excess = self.landscape.excess(self.landscape.worth(levels)[1])
        self._remember(levels, loss, excess)
        leader = self._compare(levels, loss, excess, progress)
        if self.still >= self.options.patience:
            self.scatters += 1
            self.scatter()
            return
        options, shape = self.options, self.x.shape
        pull = options.cognitive * self.rng.random(shape) * (self.own - self.x)
        pull += options.social * self.rng.random(shape) * (self.own[leader] - self.x)
        fastest = np.maximum(self.top / 2, 1.0)
        self.v = np.clip(options.inertia * self.v + pull, -fastest, fastest)
        self.x = np.clip(self.x + self.v, 0.0, self.top)

    @property
    def done(self) -> bool:
        """True once several scatterings in a row have found nothing better."""
        return self.scatters >= self.options.scatters

    def _remember(self, levels: Ints, loss: Floats, excess: Floats) -> None:
        """Keep the best assignment that fits: the answer comes from feasible particles only."""
        for i in np.argsort(np.where((excess == 0).all(axis=1), loss, np.inf), kind="stable"):
            if excess[i].any() or (self.best is not None and loss[i] >= self.best.loss):
                return
            # The sum without rounding error decides.
            if self.landscape.tables.fits(levels[i]):
                self.best = Best(levels=levels[i].copy(), loss=float(loss[i]))
                self.scatters = 0
                return

    def _compare(self, levels: Ints, loss: Floats, excess: Floats, progress: float) -> int:
        """Update each particle's own best; return the index of the leader."""
        now = self.method.fitness(loss, excess, progress)
        own = self.method.fitness(self.own_loss, self.own_excess, progress)
        better = now < own
        self.own[better] = levels[better]
        self.own_loss[better], self.own_excess[better] = loss[better], excess[better]
        fitness = np.where(better, now, own)
        leader = int(np.argmin(fitness))
        self.still = 0 if better[leader] and now[leader] < self.least else self.still + 1
        self.least = float(fitness[leader])
        return leader


def solve_by_swarm(
    problem: Problem,
    method: Callable[[Ints], Method],
    *,
    solver: str,
    seed: int,
    options: SwarmOptions,
    time_limit_s: float | None,
) -> Solution:
    """Run a swarm on a problem whose losses are known; the bound is the Lagrangian's.

    It ends early where the answer equals the bound. Where no particle is ever within the budget,
    the answer is the choice that fits which the first particle started from.
    """
    grounds = prepare(problem, time_limit_s)
    incumbent = grounds.feasible.incumbent
    if incumbent is None:
        return grounds.nothing_fits(solver)
    landscape = build_landscape(grounds.tables, grounds.price)
    start = landscape.levels(incumbent.choice)
    swarm = Swarm(
        landscape,
        method(start),
        lambda levels: landscape.worth(levels)[0],
        start,
        options=options,
        rng=np.random.default_rng(seed),
    )
    moves = 0
    while moves < options.iterations and time.perf_counter() < grounds.deadline:
        swarm.move(moves / options.iterations)
        moves += 1
        if swarm.done or (swarm.best is not None and swarm.best.loss <= grounds.dual.bound):
            break
    levels = swarm.best.levels if swarm.best is not None else start
    evaluations = moves * options.particles
    return grounds.conclude(landscape.choice(levels), solver, evaluations=evaluations, seed=seed)

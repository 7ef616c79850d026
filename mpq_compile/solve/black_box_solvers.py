"""Solvers of black boxes: the swarms of method 0, and greedy and exhaustive search beside them."""

from __future__ import annotations

import itertools
import math

import numpy as np

from mpq_compile.errors import PlanError
from mpq_compile.solve.evaluations import Task
from mpq_compile.solve.gcpso import Repair
from mpq_compile.solve.landscape import Landscape
from mpq_compile.solve.main_effects import main_effects
from mpq_compile.solve.ppso import Penalty
from mpq_compile.solve.swarm import Method, Swarm, SwarmOptions
from mpq_compile.solve.tables import Ints

# Moves in a row without any assignment that is new: what the swarm can reach is known.
IDLE = 100
# A swarm has converged when for this many moves less than a share of its particles is new.
CONVERGED, SHARE = 3, 0.25
# Assignments enumerated at a time.
CHUNK = 4096
# Points that the estimate is learned from at most: the best ones, and the last.
LEARNED_FROM = 400
# The estimate is learned anew when the points have grown by one part in so many.
REFIT = 20
NOISE = 0.5

Answer = tuple[Ints, bool]


def run_gcpso(task: Task) -> Answer:
    """Move repaired particles; every evaluation is within the budget."""
    noise = NOISE if task.learned else 0.0
    return _run(task, Repair(safe=task.start, noise=noise))


def run_ppso(task: Task) -> Answer:
    """Move penalised particles; the answer comes from those within the budget."""
    return _run(task, Penalty())


def _run(task: Task, method: Method) -> Answer:
    evaluate = task.evaluate
    particles = int(np.clip(evaluate.limit // 12, 4, 32))
    swarm = Swarm(
        task.landscape,
        method,
        evaluate,
        task.start,
        options=SwarmOptions(particles=particles),
        rng=np.random.default_rng(task.seed),
        known=_Estimate(task),
    )
    idle = stale = 0
    while evaluate.left > 0 and idle < IDLE:
        before = len(evaluate)
        swarm.move(before / evaluate.limit)
        fresh = len(evaluate) - before
        idle = 0 if fresh else idle + 1
        stale = 0 if fresh >= SHARE * particles else stale + 1
        if stale == CONVERGED:
            swarm.scatter()
            stale = 0
        if swarm.best is not None:
            evaluate.note(swarm.best.loss)
    # Infinite objectives leave no best: then any assignment that fits is as good.
    return (task.start if swarm.best is None else swarm.best.levels), False


class _Estimate:
    """The landscape whose losses a repair goes by: given, or learned from what was evaluated."""

    def __init__(self, task: Task) -> None:
        self.task, self.landscape, self.next = task, task.landscape, 0

    def __call__(self) -> Landscape:
        if self.task.learned and len(self.task.evaluate) >= self.next:
            self.landscape = self._learned()
            self.next = len(self.task.evaluate) + len(self.task.evaluate) // REFIT + 1
        return self.landscape

    def _learned(self) -> Landscape:
        values = np.array(self.task.evaluate.values)
        best = np.argsort(values, kind="stable")[: LEARNED_FROM // 2]
        kept = np.union1d(best, np.arange(len(values))[-LEARNED_FROM // 2 :]).astype(np.int64)
        levels = np.array([self.task.evaluate.levels[i] for i in kept], dtype=np.int64)
        allowed = self.task.landscape.tables.allowed
        effects = main_effects(levels.reshape(len(kept), len(allowed)), values[kept], allowed)
        return self.task.landscape.with_loss(effects)


def run_greedy(task: Task) -> Answer:
    """From levels that fit, take the step up of largest fall per cost until no step fits.

    Where no step helps, the one that harms least per cost is taken: what follows may pay for it.
    The answer is the best that was met.
    """
    landscape, evaluate = task.landscape, task.evaluate
    now = best = task.start
    loss = least = float(evaluate(now[None])[0])
    evaluate.note(least)
    while evaluate.left > 0:
        trials, cost = _steps_up(landscape, now)
        if not len(trials):
            break
        values = evaluate(trials)
        fall = loss - values
        # A fall is worth more where it costs less, and so is a rise where it buys more.
        score = np.where(fall > 0, fall / np.maximum(cost, 1e-300), fall * cost)
        chosen = int(np.argmax(score))
        now, loss = trials[chosen], float(values[chosen])
        if loss < least:
            best, least = now, loss
            evaluate.note(least)
    return best, False


def _steps_up(landscape: Landscape, levels: Ints) -> tuple[Ints, np.ndarray]:
    """Return all levels (N, G) one step up that fit, and the cost (N,) of each step."""
    steps = landscape.steps(levels[None], 1)
    _, usage = landscape.worth(levels[None])
    fits = (usage + steps.usage[0] <= landscape.limit).all(axis=1)
    up = np.flatnonzero(steps.possible[0] & fits)
    trials = np.repeat(levels[None], len(up), axis=0)
    trials[np.arange(len(up)), up] += 1
    return trials, np.maximum(steps.usage[0, up] / landscape.spread, 0.0).sum(axis=1)


def run_exhaustive(task: Task) -> Answer:
    """Evaluate every assignment within the budget; of equal ones the first is the answer."""
    landscape, evaluate = task.landscape, task.evaluate
    counts = landscape.counts.tolist()
    best, least = task.start, math.inf
    everything = itertools.product(*map(range, counts))
    while rows := list(itertools.islice(everything, CHUNK)):
        levels = np.array(rows, dtype=np.int64)
        _, usage = landscape.worth(levels)
        levels = levels[(usage <= landscape.limit).all(axis=1)]
        if len(levels) > evaluate.left:
            raise _too_many(math.prod(counts), evaluate.limit)
        if not len(levels):
            continue
        values = evaluate(levels)
        if values.min() < least:
            best, least = levels[int(np.argmin(values))], float(values.min())
            evaluate.note(least)
    return best, True


def _too_many(count: int, limit: float) -> PlanError:
    return PlanError(
        "there are too many assignments to evaluate all",
        where="exhaustive",
        expected=f"at most {limit:g} within the budget",
        found=f"{count:g} in all",
        remedy="raise evaluations, offer fewer bits, or use gcpso",
    )

"""Random problems of every kind, and the slow solver that nobody doubts."""

from __future__ import annotations

import itertools
import math

import numpy as np

from mpq_compile.solve import CandidateTerm, Group, Pair, Problem, evaluate, fits

Rng = np.random.Generator


def small_problem(seed: int) -> Problem:
    """Up to 5 groups of up to 4 candidates, 0 to 3 budgets, any pairs, nulls, negative values.

    Half of the problems have small integer values, and so many equal solutions.
    """
    rng = np.random.default_rng(seed)
    count, axes = int(rng.integers(1, 6)), [f"k{d}" for d in range(rng.integers(0, 4))]
    value = _values(rng)
    groups = tuple(
        Group(
            name=f"g{g}",
            candidates=tuple(
                CandidateTerm(name=f"c{c}", loss=value(), costs={a: value() for a in axes})
                for c in range(rng.integers(1, 5))
            ),
        )
        for g in range(count)
    )
    pairs = _pairs(rng, groups, axes, value) if count > 1 and rng.random() < 0.6 else ()
    free = Problem(groups=groups, budget=dict.fromkeys(axes, 0.0), pairs=pairs)
    usages = [usage for _, loss, usage in assignments(free) if loss < math.inf]
    if not usages:
        return free
    # A budget equal to the usage of some assignment tests that it is inclusive.
    at = usages[rng.integers(len(usages))]
    factor = float(rng.choice([1.0, 1.0, 0.9, 0.7, 1.2]))
    budget = {a: at[a] * factor for a in axes}
    return Problem(groups=groups, budget=budget, pairs=pairs)


def _values(rng: Rng):
    integer, negative = rng.random() < 0.5, rng.random() < 0.3
    if integer:
        return lambda: float(rng.integers(-3 if negative else 0, 6))
    return lambda: float(rng.normal() if negative else rng.uniform(0, 5))


def _pairs(rng: Rng, groups: tuple[Group, ...], axes: list[str], value) -> tuple[Pair, ...]:
    pairs = []
    for _ in range(rng.integers(1, 2 * len(groups))):
        a, b = (groups[i] for i in rng.choice(len(groups), 2, replace=False))
        costs = {x: _matrix(rng, a, b, value) for x in axes if rng.random() < 0.6}
        loss = _matrix(rng, a, b, value) if rng.random() < 0.6 else None
        pairs.append(Pair(a=a.name, b=b.name, loss=loss, costs=costs))
    return tuple(pairs)


def _matrix(rng: Rng, a: Group, b: Group, value) -> tuple[tuple[float | None, ...], ...]:
    """Terms by format (two of them) or by candidate, some forbidden."""
    by_format = rng.random() < 0.6
    rows, columns = len(a.candidates), len(b.candidates)
    left = rng.integers(0, 2, rows) if by_format else np.arange(rows)
    right = rng.integers(0, 2, columns) if by_format else np.arange(columns)
    terms = [[None if rng.random() < 0.12 else value() for _ in range(4)] for _ in range(4)]
    return tuple(tuple(terms[i][j] for j in right) for i in left)


def assignments(problem: Problem):
    """Yield (assignment, loss, usage) of all assignments, in candidate order."""
    names = [g.name for g in problem.groups]
    for chosen in itertools.product(*([c.name for c in g.candidates] for g in problem.groups)):
        assignment = dict(zip(names, chosen, strict=True))
        yield assignment, *evaluate(problem, assignment)


def brute_force(problem: Problem) -> tuple[dict[str, str], float] | None:
    """Return the first of the best assignments and its loss, None where nothing fits."""
    best: tuple[dict[str, str], float] | None = None
    for assignment, loss, usage in assignments(problem):
        if loss == math.inf or not fits(usage, problem.budget):
            continue
        if best is None or loss < best[1] - 1e-11:
            best = assignment, loss
    return best


def network(
    seed: int,
    *,
    groups: int,
    candidates: int = 6,
    axes: int = 1,
    edges: list[tuple[int, int]] | None = None,
    tightness: float = 0.4,
    correlated: bool = False,
) -> Problem:
    """A problem like a network's: loss falls with cost, and changes of format cost time."""
    rng = np.random.default_rng(seed)
    names = [f"k{d}" for d in range(axes)]
    made = [_layer(rng, g, candidates, names, correlated) for g in range(groups)]
    budget = {}
    for name in names:
        costs = [[c.costs[name] for c in g.candidates] for g in made]
        low, high = sum(map(min, costs)), sum(map(max, costs))
        budget[name] = low + tightness * (high - low)
    pairs = tuple(_transition(rng, a, b, candidates, names[0]) for a, b in edges or ())
    return Problem(groups=tuple(made), budget=budget, pairs=pairs)


def _layer(rng: Rng, g: int, candidates: int, axes: list[str], correlated: bool) -> Group:
    cost = np.sort(rng.uniform(1, 10, (candidates, len(axes))), axis=0) * rng.lognormal(0, 0.7)
    loss = np.sort(rng.uniform(0, 1, candidates))[::-1] * rng.lognormal(0, 1)
    if correlated:
        total = cost.sum(axis=1)
        loss = total.max() - total + rng.uniform(0, 0.3, candidates)
    cost *= rng.uniform(0.8, 1.2, cost.shape)
    return Group(
        name=f"g{g}",
        candidates=tuple(
            CandidateTerm(
                name=f"c{c}",
                loss=float(loss[c]),
                costs={axis: float(cost[c, d]) for d, axis in enumerate(axes)},
            )
            for c in range(candidates)
        ),
    )


def _transition(rng: Rng, a: int, b: int, candidates: int, axis: str) -> Pair:
    price = rng.uniform(0, 3, (3, 3))
    np.fill_diagonal(price, 0)
    formats = np.arange(candidates) % 3
    matrix = tuple(tuple(float(price[i, j]) for j in formats) for i in formats)
    return Pair(a=f"g{a}", b=f"g{b}", costs={axis: matrix})


def chain(groups: int) -> list[tuple[int, int]]:
    """Edges of a chain."""
    return [(g, g + 1) for g in range(groups - 1)]


def residual(groups: int) -> list[tuple[int, int]]:
    """Edges of a chain with a skip connection over every second group."""
    return chain(groups) + [(g, g + 2) for g in range(0, groups - 2, 2)]


def star(groups: int) -> list[tuple[int, int]]:
    """Edges from the first group to all others."""
    return [(0, g) for g in range(1, groups)]


def complete(groups: int) -> list[tuple[int, int]]:
    """Edges between all groups."""
    return list(itertools.combinations(range(groups), 2))

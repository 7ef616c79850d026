"""Instances of benchmarks/solver.py: Pisinger's families, chains, and quadratic objectives.

D. Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", European Journal of
Operational Research 83 (1995): weights in [1, R], budget midway between the sums of the groups'
least and largest weights. A profit p becomes the loss (largest profit of the group) − p. With
several budgets, each axis has weights of its own and the profit follows their mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpq_compile.solve import CandidateTerm, Group, Pair, Problem

RANGE = 1000
Rng = np.random.Generator
Arrays = tuple[np.ndarray, np.ndarray]


def uncorrelated(rng: Rng, shape: tuple[int, int, int]) -> Arrays:
    """Weights and profits independent."""
    return rng.integers(1, RANGE + 1, shape), rng.integers(1, RANGE + 1, shape[1:])


def weakly(rng: Rng, shape: tuple[int, int, int]) -> Arrays:
    """Profits within 10 of the weight."""
    weight = rng.integers(1, RANGE + 1, shape)
    return weight, np.maximum(1, _mean(weight) + rng.integers(-10, 11, shape[1:]))


def strongly(rng: Rng, shape: tuple[int, int, int]) -> Arrays:
    """Running sums over a group's candidates of knapsack items with profit = weight + 10."""
    weight = np.sort(rng.integers(1, RANGE + 1, shape), axis=2)
    profit = _mean(weight) + 10
    return weight.cumsum(axis=2), profit.cumsum(axis=1)


def subset_sum(rng: Rng, shape: tuple[int, int, int]) -> Arrays:
    """Profits equal to the weight."""
    weight = rng.integers(1, RANGE + 1, shape)
    return weight, _mean(weight)


def sinha_zoltners(rng: Rng, shape: tuple[int, int, int]) -> Arrays:
    """Independent, but sorted within a group: no candidate is dominated."""
    weight, profit = uncorrelated(rng, shape)
    return np.sort(weight, axis=2), np.sort(profit, axis=1)


FAMILIES: dict[str, Callable[[Rng, tuple[int, int, int]], Arrays]] = {
    "uncorrelated": uncorrelated,
    "weakly": weakly,
    "strongly": strongly,
    "subset-sum": subset_sum,
    "Sinha-Zoltners": sinha_zoltners,
}


def _mean(weight: np.ndarray) -> np.ndarray:
    return np.rint(weight.mean(axis=0)).astype(np.int64)


def knapsack(family: str, groups: int, candidates: int, *, axes: int = 1, seed: int = 0) -> Problem:
    """Return an instance of a family."""
    rng = np.random.default_rng([seed, groups, candidates, axes])
    weight, profit = FAMILIES[family](rng, (axes, groups, candidates))
    loss = profit.max(axis=1, keepdims=True) - profit
    budget = (weight.min(axis=2).sum(axis=1) + weight.max(axis=2).sum(axis=1)) // 2
    return _problem(weight.astype(float), loss.astype(float), budget.astype(float))


def network(groups: int, candidates: int, *, axes: int = 1, seed: int = 0) -> Problem:
    """Return an instance with real numbers: loss falls with cost, as a layer's does with bits."""
    rng = np.random.default_rng([seed, groups, candidates, axes])
    size = rng.lognormal(0, 0.7, (axes, groups, 1))
    weight = np.sort(rng.uniform(1, 10, (axes, groups, candidates)), axis=2) * size
    loss = -np.sort(-rng.uniform(0, 1, (groups, candidates)), axis=1) * rng.lognormal(
        0, 1, (groups, 1)
    )
    budget = 0.6 * weight.min(axis=2).sum(axis=1) + 0.4 * weight.max(axis=2).sum(axis=1)
    return _problem(weight, loss, budget)


def chain(groups: int, candidates: int, *, seed: int = 0) -> Problem:
    """Return :func:`network` with a cost for each change between three formats."""
    plain = network(groups, candidates, seed=seed)
    rng = np.random.default_rng([seed, 1])
    formats = np.arange(candidates) % 3
    pairs = []
    for a, b in zip(plain.groups[:-1], plain.groups[1:], strict=True):
        price = rng.uniform(0, 3, (3, 3))
        np.fill_diagonal(price, 0)
        pairs.append(Pair(a=a.name, b=b.name, costs={"k0": _rows(price[np.ix_(formats, formats)])}))
    return Problem(groups=plain.groups, budget=plain.budget, pairs=tuple(pairs))


def quadratic(groups: int, candidates: int, *, seed: int = 0, signed: bool = False) -> Problem:
    """Return :func:`network` with cross terms of all pairs of groups.

    As second-order cross terms are, half the size of what the two groups lose themselves: the
    product of the roots of their losses by a random correlation; ``signed`` draws every entry
    anew instead.
    """
    plain = network(groups, candidates, seed=seed)
    rng = np.random.default_rng([seed, 2])
    loss = np.array([[c.loss for c in g.candidates] for g in plain.groups])
    pairs = []
    for i, a in enumerate(plain.groups):
        for j in range(i + 1, groups):
            term = np.sqrt(np.outer(loss[i], loss[j])) * rng.uniform(-1, 1)
            if signed:
                term = rng.normal(0, 0.3, term.shape)
            pairs.append(Pair(a=a.name, b=plain.groups[j].name, loss=_rows(term)))
    return Problem(groups=plain.groups, budget=plain.budget, pairs=tuple(pairs))


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _problem(weight: np.ndarray, loss: np.ndarray, budget: np.ndarray) -> Problem:
    axes = [f"k{d}" for d in range(len(weight))]
    costs = weight.transpose(1, 2, 0).tolist()
    groups = tuple(
        Group(
            name=f"g{g}",
            candidates=tuple(
                CandidateTerm(name=f"c{c}", loss=value, costs=dict(zip(axes, at, strict=True)))
                for c, (value, at) in enumerate(zip(row, costs[g], strict=True))
            ),
        )
        for g, row in enumerate(loss.tolist())
    )
    return Problem(groups=groups, budget=dict(zip(axes, budget.tolist(), strict=True)))

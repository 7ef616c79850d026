"""Dominated candidates, hulls and states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpq_compile.solve import CandidateTerm, Group, Pair, Problem
from mpq_compile.solve.dominance import drop_dominated, lower_hull, surviving_states
from mpq_compile.solve.tables import build_tables

POINTS = [(0.0, 9.0), (1.0, 9.5), (2.0, 8.0), (3.0, 1.0), (4.0, 1.0)]


def _group(name: str) -> Group:
    return Group(
        name=name,
        candidates=tuple(
            CandidateTerm(name=f"c{i}", loss=loss, costs={"us": us})
            for i, (us, loss) in enumerate(POINTS)
        ),
    )


def test_dominated_candidates_go() -> None:
    tables = build_tables(Problem(groups=(_group("g"),), budget={"us": 4.0}))
    assert drop_dominated(tables)[0].tolist() == [True, False, True, True, False]


def test_hull() -> None:
    cost, loss = np.array(POINTS).T
    assert lower_hull(cost, loss) == [0, 3]


def test_a_better_pair_row_saves_a_candidate() -> None:
    size = len(POINTS)
    row = [[5.0] * size for _ in range(size)]
    row[1] = [0.0] * size
    pair = Pair(a="g", b="h", costs={"us": tuple(map(tuple, row))})
    groups = (_group("g"), _group("h"))
    tables = build_tables(Problem(groups=groups, budget={"us": 9.0}, pairs=(pair,)))
    assert drop_dominated(tables)[0].tolist() == [True, True, True, True, False]
    # Seen from h, all rows are alike.
    assert drop_dominated(tables)[1].tolist() == [True, False, True, True, False]
    assert tables.class_count.tolist() == [2, 1]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_hull_lies_below_all_points(points: list[tuple[int, int]]) -> None:
    cost, loss = np.array(points, dtype=float).T
    hull = lower_hull(cost, loss)
    assert (np.diff(cost[hull]) > 0).all() and (np.diff(loss[hull]) < 0).all()
    below = np.interp(cost, cost[hull], loss[hull])
    assert (loss >= below - 1e-12).all()


@dataclass(frozen=True)
class _States:
    choice: np.ndarray
    loss: np.ndarray
    usage: np.ndarray


@pytest.mark.parametrize("axes", [0, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_every_dropped_state_has_a_better_one(axes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 80
    states = _States(
        choice=rng.permutation(count).astype(np.uint8)[:, None],
        loss=rng.integers(0, 5, count).astype(float),
        usage=rng.integers(0, 5, (count, axes)).astype(float),
    )
    key = rng.integers(0, 3, count)
    kept = surviving_states(states, key, 0.0)
    better = (key[:, None] == key) & (states.usage[:, None] <= states.usage).all(axis=2)
    rank = [*zip(states.loss.tolist(), states.choice[:, 0].tolist(), strict=True)]
    better &= np.array([[a < b for b in rank] for a in rank])
    dominated = better.any(axis=0)
    dropped = np.setdiff1d(np.arange(count), kept)
    assert dominated[dropped].all()
    if axes < 2:
        assert not dominated[kept].any()

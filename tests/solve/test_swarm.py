"""PPSO and GC-PSO: stability, feasibility, and the known answers of method 0."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from black_boxes import interacting, water_filling
from solve_instances import chain, network, residual, small_problem

from mpq_compile.errors import PlanError
from mpq_compile.solve import BlackBox, minimize_black_box, solve
from mpq_compile.solve.feasible import prepare
from mpq_compile.solve.gcpso import Repair, solve_gcpso
from mpq_compile.solve.landscape import build_landscape
from mpq_compile.solve.ppso import Penalty, solve_ppso
from mpq_compile.solve.swarm import SwarmOptions
from mpq_compile.solve.tables import build_tables

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "black_box"))
import fir_filter

SWARMS = {"ppso": solve_ppso, "gcpso": solve_gcpso}


@pytest.mark.parametrize(
    ("inertia", "pull"), [(1.0, 1.0), (-1.0, 0.1), (0.7, 3.5), (0.7, 0.0), (0.0, 2.1)]
)
def test_unstable_constants_are_refused(inertia: float, pull: float) -> None:
    with pytest.raises(PlanError, match="unstable"):
        SwarmOptions(inertia=inertia, cognitive=pull, social=pull)


def test_constants_that_are_stable_on_average_only_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="stable on average"):
        SwarmOptions(inertia=0.0, cognitive=1.5, social=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SwarmOptions()


@pytest.mark.parametrize("phi", np.linspace(0.05, 4.5, 12).tolist())
@pytest.mark.parametrize("inertia", [-0.5, 0.0, 0.7298, 0.95])
def test_the_rule_of_stability_is_that_of_the_roots(inertia: float, phi: float) -> None:
    """The roots of λ² − (1 + ω − φ)λ + ω decide; φ is (c₁ + c₂)/2 on average."""
    stable = bool(np.abs(np.roots([1.0, -(1 + inertia - phi), inertia])).max() < 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if stable:
            SwarmOptions(inertia=inertia, cognitive=phi, social=phi)
        else:
            with pytest.raises(PlanError):
                SwarmOptions(inertia=inertia, cognitive=phi, social=phi)


def test_penalty_never_falls() -> None:
    penalty, rng = Penalty(), np.random.default_rng(0)
    weights = []
    for step in range(20):
        penalty.fitness(rng.uniform(0, 1 / (1 + step), 8), np.zeros((8, 1)), step / 20)
        weights.append(penalty.weight)
    assert weights == sorted(weights) and weights[0] < weights[-1]


@pytest.mark.parametrize("solver", SWARMS)
def test_another_seed_is_another_search(solver: str) -> None:
    problem = network(0, groups=25)
    options = SwarmOptions(iterations=5, particles=6)
    answers = [SWARMS[solver](problem, seed=s, options=options).loss for s in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("seed", range(60))
def test_levels_are_the_problem_in_another_order(seed: int) -> None:
    """Worth and steps of many particles at once equal the tables', one at a time."""
    problem = small_problem(seed)
    tables = build_tables(problem)
    rng = np.random.default_rng(seed)
    landscape = build_landscape(tables, rng.uniform(0.5, 2, len(tables.axes)))
    levels = rng.integers(0, landscape.counts, (9, len(landscape.counts)))
    assert (landscape.levels(landscape.choice(levels[0])) == levels[0]).all()
    loss, usage = landscape.worth(levels)
    for i, choice in enumerate(landscape.choice(levels)):
        expected, used = tables.worth(choice)
        assert (expected == np.inf) == (usage[i, -1] > 0)
        if expected < np.inf:
            assert loss[i] == pytest.approx(expected)
            assert usage[i, :-1] == pytest.approx(used)
    for by in (-1, 1):
        steps = landscape.steps(levels, by)
        for g in range(levels.shape[1]):
            moved = levels.copy()
            moved[:, g] += by * steps.possible[:, g]
            after, used = landscape.worth(moved)
            assert after - loss == pytest.approx(steps.loss[:, g])
            assert used - usage == pytest.approx(steps.usage[:, g])


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("edges", [[], chain(12), residual(12)], ids=["none", "chain", "residual"])
def test_repair_brings_every_particle_within_the_budget(
    axes: int, edges: list[tuple[int, int]]
) -> None:
    grounds = prepare(network(5, groups=12, axes=axes, edges=edges), None)
    landscape = build_landscape(grounds.tables, grounds.price)
    rng = np.random.default_rng(0)
    levels = rng.integers(0, landscape.counts, (64, 12))
    assert landscape.excess(landscape.worth(levels)[1]).any()
    safe = landscape.levels(grounds.cheapest())
    repaired = Repair(safe).place(landscape, levels, rng)
    _, usage = landscape.worth(repaired)
    assert (usage <= landscape.limit).all()
    # Few particles are given up, and of the others none leaves room for a step up that helps.
    kept = (repaired != safe).any(axis=1)
    assert kept.sum() >= 48
    steps = landscape.steps(repaired, 1)
    fitting = (usage[:, None, :] + steps.usage <= landscape.limit - 1e-9).all(axis=2)
    assert not (steps.possible & fitting & (steps.loss < -1e-12)).any(axis=1)[kept].any()


@pytest.mark.parametrize("name", ["one budget", "correlated", "chain"])
def test_gcpso_is_no_worse_than_greedy_on_tables(name: str) -> None:
    problem = {
        "one budget": network(0, groups=12),
        "correlated": network(0, groups=12, correlated=True),
        "chain": network(2, groups=12, edges=chain(12)),
    }[name]
    answer, greedy = solve(problem, "gcpso"), solve(problem, "greedy")
    assert answer.loss is not None and greedy.loss is not None
    assert answer.loss <= greedy.loss + 1e-12


def test_gcpso_finds_the_optimum_of_reverse_water_filling() -> None:
    """In at least 95 of 100 seeds, knowing nothing of the objective's form."""
    box, best = water_filling(0)
    found = [minimize_black_box(box, seed=seed, evaluations=400).loss for seed in range(100)]
    assert sum(loss <= best * (1 + 1e-9) for loss in found) >= 95


def test_gcpso_finds_the_optimum_of_the_fir_filters_l2_error() -> None:
    """In at least 95 of 100 seeds; the optimum is the exact solver's, by Parseval."""
    box, best = fir_filter.black_box(fir_filter.l2_error), fir_filter.exact_l2()
    found = [minimize_black_box(box, seed=seed, evaluations=900).loss for seed in range(100)]
    assert sum(loss <= best * (1 + 1e-9) for loss in found) >= 95


@pytest.mark.parametrize("problem", [0, 1, 2, "ripple"])
def test_gcpso_beats_greedy_at_equal_evaluations(problem: int | str) -> None:
    """Where bits interact and greedy misses the optimum: on average, and in most seeds."""
    box = fir_filter.black_box(fir_filter.ripple)
    if isinstance(problem, int):
        box = interacting(problem, neighbours=2)
    best = minimize_black_box(box, "exhaustive", evaluations=10**6)
    greedy = minimize_black_box(box, "greedy", evaluations=10**6)
    assert greedy.loss > best.loss
    found = np.array(
        [
            minimize_black_box(box, seed=seed, evaluations=greedy.evaluations).loss
            for seed in range(30)
        ]
    )
    assert found.mean() < greedy.loss
    assert (found < greedy.loss).mean() >= 0.8
    assert found.min() >= best.loss * (1 - 1e-12)


@pytest.mark.parametrize("solver", SWARMS)
@pytest.mark.parametrize("seed", range(20))
def test_the_best_is_never_beyond_the_budget(solver: str, seed: int) -> None:
    box = interacting(seed)
    found = minimize_black_box(box, solver, seed=seed, evaluations=60)
    assert found.usage["price"] <= box.problem.budget["price"] * (1 + 1e-9)
    assert found.loss == pytest.approx(_value(box, found.bits))


def _value(box: BlackBox, bits: dict[str, int]) -> float:
    return float(box.objective(np.array([list(bits.values())]))[0])


def test_every_evaluation_of_gcpso_is_within_the_budget() -> None:
    seen: list[np.ndarray] = []

    def loss(bits: np.ndarray) -> np.ndarray:
        seen.append(bits)
        return (4.0**-bits).max(axis=1)

    box = BlackBox.from_bits({f"v{i}": range(1, 9) for i in range(6)}, loss, {"bits": 20})
    minimize_black_box(box, "gcpso", evaluations=200)
    assert max(int(bits.sum(axis=1).max()) for bits in seen) <= 20
    seen.clear()
    minimize_black_box(box, "ppso", evaluations=200)
    assert max(int(bits.sum(axis=1).max()) for bits in seen) > 20

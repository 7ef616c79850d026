"""MixQuant: its quantizer, its rule, and which error reproduces its published bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solve_instances import network

from mpq_compile.errors import PlanError
from mpq_compile.solve import CandidateTerm, Group, Problem, evaluate, fits
from mpq_compile.solve.mixquant import (
    least_bits,
    quantize_asymmetric,
    roundoff_error,
    solve_mixquant,
)

# The shapes of a network's weights: normal, of several sizes.
LAYERS = [np.random.default_rng(s).normal(0, 0.1, 2000 * (1 + 4 * s)) for s in range(8)]


def test_golden_case() -> None:
    codes = quantize_asymmetric(np.array([-1, 0.01, 1, 2]), 2)
    assert codes.codes.tolist() == [-2, -1, 0, 1]
    assert codes.dequantize().tolist() == [-1, 0, 1, 2]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.integers(2, 8))
def test_error_is_at_most_half_a_step(weights: list[float], bits: int) -> None:
    values = np.array(weights)
    codes = quantize_asymmetric(values, bits)
    assert np.abs(codes.dequantize() - values).max() <= codes.scale / 2 * (1 + 1e-9)


def test_each_bit_less_multiplies_the_square_error_by_about_four() -> None:
    ratios = [
        roundoff_error(LAYERS[3], b, "mse") / roundoff_error(LAYERS[3], 8, "mse") for b in (7, 6, 5)
    ]
    assert ratios == pytest.approx([4.06, 16.4, 67], rel=0.05)


def test_the_relative_error_reproduces_the_published_bits() -> None:
    """QEM = 2 gave 6 and 7 bits; with the square error it leaves every layer at 8."""
    assert {least_bits(w, 2.0, "relative") for w in LAYERS} <= {6, 7}
    assert {least_bits(w, 2.0, "mse") for w in LAYERS} == {8}


def test_more_error_allows_fewer_bits() -> None:
    for weights in LAYERS:
        bits = [least_bits(weights, m) for m in (1.0, 1.5, 2.0, 3.0, 10.0, 1e9)]
        assert bits == sorted(bits, reverse=True)
        assert bits[-1] == 2


def roundoff_problem(budget: float) -> Problem:
    """Layers of normal weights, losses by the relative error, and a float candidate."""
    groups = []
    for i, weights in enumerate(LAYERS[:4]):
        terms = [
            CandidateTerm(
                name=f"w{b}a8",
                loss=roundoff_error(weights, b),
                costs={"bits": float(b * len(weights))},
            )
            for b in range(2, 9)
        ]
        terms.append(CandidateTerm(name="fp32", loss=0.0, costs={"bits": 32.0 * len(weights)}))
        groups.append(Group(name=f"l{i}", candidates=tuple(terms)))
    return Problem(groups=tuple(groups), budget={"bits": budget})


WEIGHTS = sum(map(len, LAYERS[:4]))


@pytest.mark.parametrize("average", [2.0, 3.0, 4.5, 6.0, 7.3, 8.0, 20.0])
def test_the_smallest_multiplier_that_fits(average: float) -> None:
    problem = roundoff_problem(average * WEIGHTS)
    solution = solve_mixquant(problem)
    multiplier = solution.certificate["multiplier"]
    assert fits(solution.usage, problem.budget)
    assert solution.assignment == _rule(problem, multiplier)
    if multiplier > 1:
        _, usage = evaluate(problem, _rule(problem, multiplier * (1 - 1e-9)))
        assert not fits(usage, problem.budget)


def _rule(problem: Problem, multiplier: float) -> dict[str, str]:
    """The method's rule, layer by layer; the error of 8 bits is the reference."""
    chosen = {}
    for group in problem.groups:
        reference = next(c.loss for c in group.candidates if c.name == "w8a8")
        within = [c for c in group.candidates if c.loss / reference <= multiplier * (1 + 1e-15)]
        chosen[group.name] = min(within, key=lambda c: c.costs["bits"]).name
    return chosen


def test_a_given_multiplier() -> None:
    problem = roundoff_problem(8.0 * WEIGHTS)
    assert solve_mixquant(problem, multiplier=2.0).assignment == _rule(problem, 2.0)
    with pytest.raises(PlanError, match="exceeds the budget"):
        solve_mixquant(roundoff_problem(3.0 * WEIGHTS), multiplier=2.0)
    with pytest.raises(PlanError, match="too small"):
        solve_mixquant(problem, multiplier=0.5)


def test_several_budgets_take_the_first_multiplier_that_fits_all() -> None:
    problem = network(1, groups=12, axes=2, tightness=0.5)
    solution = solve_mixquant(problem)
    assert fits(solution.usage, problem.budget)
    assert solution.certificate["multiplier"] >= 1


def test_usage_falls_with_the_multiplier() -> None:
    problem = roundoff_problem(32.0 * WEIGHTS)
    usage = [
        solve_mixquant(problem, multiplier=m).usage["bits"] for m in (1.0, 1.5, 2.0, 4.0, 16.0)
    ]
    assert all(b <= a for a, b in itertools.pairwise(usage))

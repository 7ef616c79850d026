"""The Pareto walk, and the searches for the last state that meets a target."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from solve_instances import chain, network, small_problem

from mpq_compile.errors import PlanError
from mpq_compile.solve import CandidateTerm, Group, Problem, fits, pareto_curve, solve
from mpq_compile.solve.last_meeting import SEARCHES, last_meeting
from mpq_compile.solve.pareto import solve_pareto

SCORES = {"a": {"w8": 0.01, "w4": 0.2, "w2": 0.9}, "b": {"w8": 0.02, "w4": 0.1, "w2": 0.15}}


def layers(budget: float) -> Problem:
    """Two layers whose list is known."""
    return Problem(
        groups=tuple(
            Group(
                name=name,
                candidates=tuple(
                    CandidateTerm(name=c, loss=loss, costs={"bits": float(c[1:])})
                    for c, loss in losses.items()
                ),
            )
            for name, losses in SCORES.items()
        ),
        budget={"bits": budget},
    )


def test_the_curve_applies_the_list_from_the_best_homogeneous_candidate() -> None:
    curve = pareto_curve(layers(16))
    states = [tuple(point.assignment.values()) for point in curve]
    # The list by rising loss: b w4, b w2, a w4, a w2.
    assert states == [("w8", "w8"), ("w8", "w4"), ("w8", "w2"), ("w4", "w2"), ("w2", "w2")]
    assert [point.usage["bits"] for point in curve] == [16, 12, 10, 6, 4]


def test_an_entry_never_raises_bits() -> None:
    """Here b loses less at 2 bits than at 4: its later entry of 4 bits is passed over."""
    problem = layers(16)
    b = Group(name="b", candidates=(*problem.groups[1].candidates[:1], *_swapped()))
    curve = pareto_curve(Problem(groups=(problem.groups[0], b), budget=problem.budget))
    usage = [point.usage["bits"] for point in curve]
    assert usage == sorted(usage, reverse=True)
    assert all(point.assignment["b"] != "w4" for point in curve)


def _swapped() -> tuple[CandidateTerm, CandidateTerm]:
    return (
        CandidateTerm(name="w4", loss=0.15, costs={"bits": 4.0}),
        CandidateTerm(name="w2", loss=0.1, costs={"bits": 2.0}),
    )


@pytest.mark.parametrize("budget", [16.0, 13.0, 12.0, 9.9, 6.0, 4.0])
@pytest.mark.parametrize("search", SEARCHES)
def test_solver_takes_the_first_state_that_fits(budget: float, search: str) -> None:
    problem = layers(budget)
    expected = next(p for p in pareto_curve(problem) if fits(p.usage, problem.budget))
    assert solve_pareto(problem, search=search).assignment == expected.assignment


@pytest.mark.parametrize("seed", range(20))
def test_all_searches_agree_where_the_curve_is_monotone(seed: int) -> None:
    """One budget: each entry lowers the usage, so brute force finds what the others find."""
    problem = network(seed, groups=15, tightness=0.1 + 0.04 * seed)
    curve = pareto_curve(problem)
    assert all(b.usage["k0"] < a.usage["k0"] for a, b in itertools.pairwise(curve))
    answers = [solve_pareto(problem, search=s).assignment for s in SEARCHES]
    assert answers[0] == answers[1] == answers[2]
    expected = next(p for p in curve if fits(p.usage, problem.budget))
    assert answers[0] == expected.assignment


@pytest.mark.parametrize("seed", range(60))
def test_reverse_is_never_worse_where_it_starts_on_the_curve(seed: int) -> None:
    problem = small_problem(seed)
    forward = solve_pareto(problem)
    reverse = solve_pareto(problem, reverse=True)
    assert forward.status == reverse.status
    if not problem.pairs and forward.loss is not None and reverse.loss is not None:
        assert reverse.loss <= forward.loss + 1e-9


def test_reverse_takes_back_what_still_fits() -> None:
    # At 9 bits the forward walk stops at (w4, w2) of 6; backwards b's last entry goes too.
    assert dict(solve_pareto(layers(9)).assignment) == {"a": "w4", "b": "w2"}
    assert dict(solve_pareto(layers(9), reverse=True).assignment) == {"a": "w4", "b": "w4"}


def test_off_the_curve_the_answer_still_fits() -> None:
    problem = network(2, groups=20, axes=3, edges=chain(20), tightness=0.02)
    solution = solve(problem, "pareto")
    assert fits(solution.usage, problem.budget)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-10, 10), max_size=60), st.sampled_from(sorted(SEARCHES)))
def test_last_meeting_equals_brute_force_on_falling_margins(
    margins: list[float], search: str
) -> None:
    falling = sorted(margins, reverse=True)
    asked: list[int] = []

    def margin(index: int) -> float:
        asked.append(index)
        return falling[index]

    found = last_meeting(len(falling), margin, search)
    meeting = [i for i, value in enumerate(falling) if value >= 0]
    assert found.index == (meeting[-1] if meeting else None)
    assert found.looked_at == len(asked) == len(set(asked))
    if search == "binary":
        assert found.looked_at <= 2 + np.ceil(np.log2(max(2, len(falling))))


def test_interpolation_looks_at_few_states_of_a_smooth_curve() -> None:
    looks = [last_meeting(10_000, lambda n: 1234.5 - n, s).looked_at for s in SEARCHES]
    assert looks[0] == 10_000 and looks[2] < looks[1] < 20


def test_unknown_search() -> None:
    with pytest.raises(PlanError, match="binary"):
        last_meeting(3, lambda n: 1.0, "binry")

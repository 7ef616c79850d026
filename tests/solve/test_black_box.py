"""The library for objectives of any kind."""

from __future__ import annotations

import numpy as np
import pytest
from black_boxes import interacting, water_filling

from mpq_compile.errors import InfeasibleBudgetError, MpqError, PlanError
from mpq_compile.registry import BLACK_BOX_SOLVERS
from mpq_compile.solve import BlackBox, Pair, Problem, minimize_black_box
from mpq_compile.solve.main_effects import main_effects

solvers = pytest.mark.parametrize("solver", BLACK_BOX_SOLVERS)
THREE = {"a": (2, 4, 8), "b": (2, 4, 8), "c": (2, 4, 8)}


def total(bits: np.ndarray) -> np.ndarray:
    """An objective for which more bits are better."""
    return -bits.sum(axis=1).astype(float)


@solvers
def test_answer_is_sound(solver: str) -> None:
    for seed in range(6):
        box = interacting(seed, variables=5)
        best = minimize_black_box(box, "exhaustive", evaluations=10**4)
        found = minimize_black_box(box, solver, evaluations=1000)
        again = minimize_black_box(box, solver, evaluations=1000)
        assert found.loss >= best.loss - 1e-12
        assert found.usage["price"] <= box.problem.budget["price"]
        assert (found.assignment, found.evaluations) == (again.assignment, again.evaluations)
        assert found.history[-1][1] == found.loss
        assert [loss for _, loss in found.history] == sorted(
            (loss for _, loss in found.history), reverse=True
        )
        assert found.optimal == (solver == "exhaustive")


@solvers
def test_several_budgets_and_costs_of_all_kinds(solver: str) -> None:
    box = BlackBox.from_bits(
        THREE,
        total,
        budget={"bits": 14, "area": 90.0, "table": 5.0},
        costs={"area": lambda b: float(b * b), "table": [[1, 2, 3], [1, 2, 3], [0, 0, 0]]},
    )
    found = minimize_black_box(box, solver)
    assert found.usage["bits"] <= 14 and found.usage["area"] <= 90 and found.usage["table"] <= 5
    assert found.loss == -14


@solvers
def test_the_objective_is_asked_once_for_each_assignment_and_not_too_often(solver: str) -> None:
    seen: list[bytes] = []

    def loss(bits: np.ndarray) -> np.ndarray:
        seen.extend(row.tobytes() for row in bits)
        return (2.0**-bits).max(axis=1)

    box = BlackBox.from_bits(THREE, loss, {"bits": 18})
    found = minimize_black_box(box, solver, evaluations=100)
    assert len(seen) == len(set(seen)) == found.evaluations <= 27
    if solver != "exhaustive":
        assert minimize_black_box(box, solver, evaluations=3).evaluations <= 3


@solvers
def test_unusable_assignments_are_avoided(solver: str) -> None:
    def loss(bits: np.ndarray) -> np.ndarray:
        return np.where(bits[:, 0] > bits[:, 1], np.inf, total(bits))

    found = minimize_black_box(BlackBox.from_bits(THREE, loss, {"bits": 14}), solver)
    assert found.loss == -14 and found.bits["a"] <= found.bits["b"]


@solvers
def test_pairs_price_and_forbid(solver: str) -> None:
    plain = BlackBox.from_bits(THREE, total, {"bits": 20})
    forbidden = tuple(tuple(None if i == j else 0.0 for j in range(3)) for i in range(3))
    problem = Problem(
        groups=plain.problem.groups,
        budget=plain.problem.budget,
        pairs=(Pair(a="a", b="b", loss=forbidden), Pair(a="b", b="c", costs={"bits": forbidden})),
    )
    found = minimize_black_box(BlackBox(problem=problem, objective=plain.objective), solver)
    a, b, c = found.bits.values()
    assert a != b != c
    if solver != "greedy":  # no single step leads it there
        assert found.loss == -20


@solvers
def test_nothing_fits(solver: str) -> None:
    with pytest.raises(InfeasibleBudgetError, match="least bits is 6"):
        minimize_black_box(BlackBox.from_bits(THREE, total, {"bits": 5}), solver)


def test_start_and_estimate_are_used() -> None:
    box, best = water_filling(3)
    cheap = minimize_black_box(box, "gcpso", evaluations=1)
    given = minimize_black_box(box, "greedy", evaluations=10**5)
    assert given.loss == pytest.approx(best)
    started = minimize_black_box(box, "gcpso", evaluations=1, start=given.assignment)
    assert started.loss == pytest.approx(best) and started.loss < cheap.loss
    variances = np.random.default_rng(3).lognormal(0.0, 2.0, 8)
    known = BlackBox.from_bits(
        {f"s{i}": range(13) for i in range(8)},
        lambda bits: (variances * 4.0**-bits).sum(axis=1),
        budget={"bits": 24},
        estimate=[[a * 4.0**-b for b in range(13)] for a in variances],
    )
    # With the right estimate, repairs alone lead to the optimum.
    assert minimize_black_box(known, "gcpso", evaluations=40).loss == pytest.approx(best)


def test_an_additive_loss_is_learned_exactly() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 1, (4, 5))
    levels = rng.integers(0, 5, (200, 4))
    learned = main_effects(levels, true[np.arange(4), levels].sum(axis=1), np.ones((4, 5), bool))
    assert learned - learned[:, :1] == pytest.approx(true - true[:, :1], abs=0.01)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda b: np.zeros((len(b), 1)), "not one number"),
        (lambda b: 0.0, "not one number"),
        (lambda b: np.full(len(b), np.nan), "not one number"),
    ],
)
def test_wrong_answers_are_refused(answer, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        minimize_black_box(BlackBox.from_bits(THREE, answer, {"bits": 14}))


def test_wrong_questions_are_refused() -> None:
    box = BlackBox.from_bits(THREE, total, {"bits": 14})
    with pytest.raises(MpqError, match="gcpso"):
        minimize_black_box(box, "gcps")
    for evaluations in (0, 10.5, "10"):
        with pytest.raises(PlanError, match="evaluations must be a whole number of at least 1"):
            minimize_black_box(box, evaluations=evaluations)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="seed must be a whole number of at least 0"):
        minimize_black_box(box, seed=-1)
    with pytest.raises(PlanError, match="too many"):
        minimize_black_box(box, "exhaustive", evaluations=5)
    with pytest.raises(PlanError, match="start is not within"):
        minimize_black_box(box, start={"a": "8", "b": "8", "c": "8"})
    with pytest.raises(PlanError, match="row"):
        BlackBox.from_bits(THREE, total, {"k": 1.0}, costs={"k": [[1.0, 2.0]]})
    with pytest.raises(PlanError, match="watt"):
        BlackBox.from_bits(THREE, total, {"watt": 1.0})

"""Bit allocation for any objective: method 0 as a library (arXiv 2412.03101).

    minimise f(b)   subject to   Σ_i c_i(b_i) ≤ B,   b_i ∈ {bits offered for variable i}

f is any function of the whole assignment: the ripple of a filter, the mean square error of a
receiver, the true loss of a network. Costs are sums over variables (and pairs), on any number of
axes. ``docs/black_box.md`` shows the use, ``examples/black_box`` four applications.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from mpq_compile.errors import InfeasibleBudgetError, PlanError
from mpq_compile.registry import BLACK_BOX_SOLVERS
from mpq_compile.solve.evaluations import Evaluations, Objective, Task
from mpq_compile.solve.feasible import Grounds, prepare
from mpq_compile.solve.landscape import build_landscape
from mpq_compile.solve.problem import CandidateTerm, Group, Problem, evaluate, fits
from mpq_compile.solve.tables import Ints, build_tables

# What a variable of so many bits costs: a function of bits, or a row for each variable.
Cost = Callable[[int], float] | Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class BlackBox:
    """Variables with their candidates, the budget, and what is minimised.

    Args:
        problem: Groups (the variables), costs, pair costs and the budget. Its losses are an
            estimate, used only by repairs to weigh one bit against another; where all are zero,
            the estimate is learned from the evaluations.
        objective: Takes candidate indices int64 [particles, variables] in the problem's order,
            returns the loss [particles]; infinite where an assignment cannot be used.
    """

    problem: Problem
    objective: Objective

    @classmethod
    def from_bits(
        cls,
        variables: Mapping[str, Sequence[int]],
        objective: Objective,
        budget: Mapping[str, float],
        costs: Mapping[str, Cost] | None = None,
        estimate: Sequence[Sequence[float]] | None = None,
    ) -> BlackBox:
        """Return the problem of choosing bits.

        Args:
            variables: Name to the bit-widths offered.
            objective: Takes bits int64 [particles, variables], returns the loss [particles].
            budget: Axis to limit. The axis ``bits`` needs no cost: it counts the bits.
            costs: Axis to a function from bits to cost, or to one row of costs a variable.
            estimate: One row a variable: what each of its bit-widths loses, roughly.

        Raises:
            PlanError: A row has the wrong length, or an axis of the budget has no cost.

        >>> box = BlackBox.from_bits(
        ...     {"a": range(1, 9), "b": range(1, 9)},
        ...     lambda bits: 4.0 ** -bits[:, 0] + 16 * 4.0 ** -bits[:, 1],
        ...     budget={"bits": 10},
        ... )
        >>> minimize_black_box(box, evaluations=60).bits
        {'a': 4, 'b': 6}
        """
        given: dict[str, Cost] = {"bits": float, **(costs or {})}
        groups = tuple(
            Group(
                name=name,
                candidates=tuple(
                    CandidateTerm(
                        name=str(b),
                        loss=_entry(estimate, v, c, len(offered)) if estimate else 0.0,
                        costs={axis: _cost(k, v, c, b, len(offered)) for axis, k in given.items()},
                    )
                    for c, b in enumerate(offered)
                ),
            )
            for v, (name, offered) in enumerate(variables.items())
        )
        widths = list(variables.values())
        table = np.zeros((len(widths), max(map(len, widths), default=0)), dtype=np.int64)
        for v, offered in enumerate(widths):
            table[v, : len(offered)] = offered
        rows = np.arange(len(widths))
        return cls(
            problem=Problem(groups=groups, budget=dict(budget)),
            objective=lambda choice: objective(table[rows, choice]),
        )


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The best assignment found.

    Attributes:
        assignment: Variable to candidate name.
        loss: The objective there.
        usage: By axis.
        evaluations: Different assignments that the objective was asked for.
        history: (evaluations, best loss) at each improvement.
        optimal: True where every assignment within the budget was evaluated.
    """

    assignment: Mapping[str, str]
    loss: float
    usage: Mapping[str, float]
    evaluations: int
    history: tuple[tuple[int, float], ...]
    optimal: bool
    solver: str
    wall_s: float

    @property
    def bits(self) -> dict[str, int]:
        """Variable to bits, of a problem made by :meth:`BlackBox.from_bits`."""
        return {name: int(candidate) for name, candidate in self.assignment.items()}


def minimize_black_box(
    box: BlackBox,
    solver: str = "gcpso",
    *,
    seed: int = 0,
    evaluations: int = 1000,
    start: Mapping[str, str] | None = None,
) -> Minimum:
    """Return the best assignment within the budget that ``solver`` finds.

    Args:
        solver: ``gcpso`` or ``ppso`` (swarms), ``greedy`` (adds the bit that gains most per
            cost), or ``exhaustive`` (all assignments, for small problems).
        seed: Of the swarms' random numbers; the same seed gives the same answer.
        evaluations: Most different assignments that the objective is asked for.
        start: An assignment within the budget to begin with; by default the cheapest.

    Raises:
        InfeasibleBudgetError: No assignment is within the budget.
        PlanError: The solver is unknown, ``start`` exceeds the budget, the objective returns
            something else than one number a particle, or there are more assignments than
            ``exhaustive`` may evaluate.
    """
    run = BLACK_BOX_SOLVERS.load(solver)
    _check_count("evaluations", evaluations, 1)
    _check_count("seed", seed, 0)
    grounds = prepare(box.problem, None)
    incumbent = grounds.feasible.incumbent
    if incumbent is None:
        raise _nothing_fits(grounds, solver)
    # A candidate that is dominated by an estimate may still be best.
    landscape = build_landscape(build_tables(box.problem), grounds.price)
    choice = incumbent.choice if start is None else _indices(box.problem, start)
    task = Task(
        landscape=landscape,
        evaluate=Evaluations(box.objective, landscape, evaluations),
        start=landscape.levels(choice),
        seed=seed,
        learned=not landscape.tables.loss.any(),
    )
    best, optimal = run(task)
    return _minimum(box.problem, task, best, optimal=optimal, solver=solver, start=grounds.start)


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, Integral) and value >= least:
        return
    raise PlanError(
        f"{name} must be a whole number of at least {least}",
        where=name,
        expected=f"at least {least}",
        found=repr(value),
        remedy="correct the number, or leave it out",
    )


def _minimum(
    problem: Problem, task: Task, levels: Ints, *, optimal: bool, solver: str, start: float
) -> Minimum:
    choice = task.landscape.choice(levels).tolist()
    assignment = {g.name: g.candidates[c].name for g, c in zip(problem.groups, choice, strict=True)}
    return Minimum(
        assignment=assignment,
        loss=float(task.evaluate(levels[None])[0]),
        usage=evaluate(problem, assignment)[1],
        evaluations=len(task.evaluate),
        history=tuple(task.evaluate.history),
        optimal=optimal,
        solver=solver,
        wall_s=time.perf_counter() - start,
    )


def _indices(problem: Problem, start: Mapping[str, str]) -> Ints:
    """Return the candidate (G,) of each variable, of an assignment within the budget."""
    loss, usage = evaluate(problem, start)
    if not (np.isfinite(loss) and fits(usage, problem.budget)):
        raise PlanError(
            "the start is not within the budget",
            where="start",
            expected=f"at most {dict(problem.budget)}",
            found=usage,
            remedy="leave it out: then the search starts from the cheapest assignment",
        )
    names = ([c.name for c in group.candidates] for group in problem.groups)
    pairs = zip(problem.groups, names, strict=True)
    return np.array([known.index(start[group.name]) for group, known in pairs])


def _nothing_fits(grounds: Grounds, solver: str) -> InfeasibleBudgetError:
    certificate = grounds.nothing_fits(solver).certificate
    least = ", ".join(f"{axis} {value:g}" for axis, value in certificate["attainable"].items())
    return InfeasibleBudgetError(
        f"no assignment fits the budget: {certificate['reason']}",
        expected=f"each alone at least: {least}",
        found=", ".join(f"{axis}={value:g}" for axis, value in grounds.problem.budget.items()),
        remedy="raise the budget, or offer cheaper candidates",
    )


def _cost(cost: Cost, variable: int, index: int, bits: int, count: int) -> float:
    return float(cost(bits)) if callable(cost) else _entry(cost, variable, index, count)


def _entry(rows: Sequence[Sequence[float]], variable: int, index: int, count: int) -> float:
    if variable < len(rows) and len(rows[variable]) == count:
        return float(rows[variable][index])
    raise PlanError(
        "a row does not fit its variable",
        where=f"row {variable}",
        expected=f"one row a variable, {count} numbers in this one",
        found=len(rows[variable]) if variable < len(rows) else f"{len(rows)} rows",
        remedy="give a number for each bit-width offered",
    )

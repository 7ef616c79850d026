"""Check a solution against its problem, without a line of the solvers.

Assignment, usage, loss and gap are evaluated anew. The bound is recomputed from the multipliers
(:mod:`.bound`). Where the claim is more than that bound, as an optimum is, the candidates that
reduced costs exclude are left out and the rest is enumerated again (:mod:`.enumeration`). What is
too large for that is said to be so: the bound is then verified, and the optimality is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from mpq_compile.errors import PlanError
from mpq_compile.solve.certificate.bound import Step, least, lifted, plan_steps, singles
from mpq_compile.solve.certificate.enumeration import exists
from mpq_compile.solve.certificate.messages import least_by_messages
from mpq_compile.solve.certificate.shape import malformed, require
from mpq_compile.solve.certificate.terms import Floats, Terms, read_terms
from mpq_compile.solve.problem import Problem, Solution, evaluate, fits

__all__ = ["Report", "check"]

TOLERANCE = 1e-9

Proven = Literal["multipliers", "enumeration", "search", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcome of :func:`check`.

    Attributes:
        faults: What is wrong, in words; empty where all is right.
        proven: What the claimed bound (or the infeasibility) rests on: "multipliers" where they
            prove it, "enumeration" where the rest of it was enumerated here, "search" where
            neither can: the solver's search is then to be believed.
        bound: What was verified: no assignment within the budget has less loss. None where the
            problem is infeasible, or where nothing could be verified.
        optimal: Whether it was verified here that no assignment is better than the solution.
        lagrangian_bound: The part of ``bound`` that the multipliers prove.
    """

    faults: tuple[str, ...]
    proven: Proven
    bound: float | None = None
    optimal: bool = False
    lagrangian_bound: float | None = None

    @property
    def ok(self) -> bool:
        """True where nothing is wrong."""
        return not self.faults

    @property
    def summary(self) -> str:
        """What was verified, in words."""
        if self.faults:
            return "wrong: " + "; ".join(self.faults)
        if self.optimal:
            return f"optimality verified by {self.proven}"
        if self.bound is not None:
            return f"bound {self.bound:.6g} verified, optimality not proven here"
        if self.proven != "search":
            return f"infeasibility verified by {self.proven}"
        return "assignment and usage verified, the rest not proven here"


def check(problem: Problem, solution: Solution) -> Report:
    """Verify assignment, usage, loss, gap, bound and, where that can be done, optimality.

    Whatever is wrong with the solution, its form included, is a fault of the report.

    Raises:
        PlanError: The arguments are no ``Problem`` and ``Solution``.
    """
    require(problem, solution)
    if found := malformed(solution):
        return Report(faults=tuple(found), proven="wrong")
    terms = read_terms(problem)
    steps = plan_steps(terms)
    if solution.status == "infeasible":
        return _check_infeasible(terms, steps, solution)
    scale = _scale(problem)
    faults = _check_worth(problem, solution, scale) + _check_claims(solution, scale)
    price, more = _multipliers(terms, solution)
    if price is None:
        return Report(faults=(*faults, *more), proven="wrong")
    plain, more = _plain_bound(terms, steps, solution, price)
    faults += more + _check_bounds(terms, solution, plain, price, scale)
    faults += _check_reduced(problem, terms, solution, price, scale)
    if faults:
        return Report(faults=tuple(faults), proven="wrong", lagrangian_bound=plain)
    return _prove(terms, steps, solution, plain, price, scale)


def _plain_bound(
    terms: Terms, steps: list[Step] | None, solution: Solution, price: Floats
) -> tuple[float | None, list[str]]:
    """Return what multipliers and messages prove, None where it is too large to evaluate."""
    if steps is None:
        return least_by_messages(terms, solution.certificate, price)
    return least(terms, steps, 1.0, price), []


def _prove(
    terms: Terms,
    steps: list[Step] | None,
    solution: Solution,
    plain: float | None,
    price: Floats,
    scale: float,
) -> Report:
    """Verify the claimed bound: by the multipliers, else by enumeration of what they leave."""
    assert solution.loss is not None and solution.bound is not None
    claim, loss = solution.bound, solution.loss
    bound, step = (None, 0.0) if plain is None else lifted(terms, price, plain)
    if bound is not None and (claim <= bound or _close(claim, bound, scale)):
        optimal = bound >= loss or _close(bound, loss, scale)
        return Report(
            faults=(), proven="multipliers", bound=bound, optimal=optimal, lagrangian_bound=plain
        )
    slack = max(TOLERANCE * max(abs(claim), scale), 0.5 * step)
    found = None if steps is None else exists(terms, steps, [price], claim - slack)
    if found:
        fault = f"the bound {claim} is wrong: an assignment within the budget has less loss"
        return Report(faults=(fault,), proven="wrong", bound=bound, lagrangian_bound=plain)
    if found is None:
        return Report(faults=(), proven="search", bound=bound, lagrangian_bound=plain)
    return Report(
        faults=(),
        proven="enumeration",
        bound=claim,
        optimal=_close(claim, loss, scale),
        lagrangian_bound=plain,
    )


def _check_worth(problem: Problem, solution: Solution, scale: float) -> list[str]:
    if solution.status not in ("optimal", "feasible"):
        return [f"status {solution.status!r} is unknown"]
    try:
        loss, usage = evaluate(problem, solution.assignment)
    except PlanError as error:
        return [f"{error.where}: {error.message}"]
    faults = []
    if not math.isfinite(loss):
        faults.append("a pair forbids the assignment")
    if not fits(usage, problem.budget):
        faults.append(f"usage {usage} exceeds the budget {dict(problem.budget)}")
    if solution.loss is None or not _close(solution.loss, loss, scale):
        faults.append(f"loss is {loss}, not {solution.loss}")
    if set(solution.usage) != set(usage):
        faults.append(f"usage names {sorted(solution.usage)}, not {sorted(usage)}")
    faults += [
        f"usage of {axis} is {value}, not {solution.usage[axis]}"
        for axis, value in usage.items()
        if axis in solution.usage and not _close(solution.usage[axis], value, 0.0)
    ]
    return faults


def _check_claims(solution: Solution, scale: float) -> list[str]:
    """Return what is wrong between loss, bound, gap and status."""
    loss, bound, gap = solution.loss, solution.bound, solution.gap
    if loss is None or bound is None or gap is None:
        return ["loss, bound or gap is missing"]
    faults = []
    if bound > loss and not _close(bound, loss, scale):
        faults.append(f"bound {bound} is above the loss {loss}")
    if not _close(gap, max(0.0, loss - bound) / max(1.0, abs(loss)), 1.0):
        faults.append(f"gap {gap} does not follow from loss and bound")
    if solution.status == "optimal" and not _close(bound, loss, scale):
        faults.append("the status is optimal, but the bound is below the loss")
    return faults


def _multipliers(terms: Terms, solution: Solution) -> tuple[Floats | None, list[str]]:
    prices = solution.certificate.get("multipliers")
    if not isinstance(prices, Mapping) or set(prices) != set(terms.axes):
        return None, ["the certificate lacks a multiplier for each budgeted axis"]
    if any(value < 0 for value in prices.values()):
        return None, ["a multiplier is negative"]
    return np.array([prices[axis] for axis in terms.axes], dtype=float), []


def _check_bounds(
    terms: Terms, solution: Solution, plain: float | None, price: Floats, scale: float
) -> list[str]:
    """Compare what the multipliers prove with what is claimed of them."""
    if plain is None or solution.loss is None:
        return []
    size = scale + float(price @ np.abs(terms.limit))
    faults = []
    if plain > solution.loss and not _close(plain, solution.loss, size):
        faults.append(f"the multipliers prove {plain}, above the loss {solution.loss}")
    claim = solution.certificate.get("lagrangian_bound", plain)
    # A solver may claim less than its multipliers prove, where it relaxed the pairs.
    if claim > plain and not _close(plain, claim, size):
        faults.append(f"the multipliers prove the bound {plain}, not {claim}")
    return faults


def _check_reduced(
    problem: Problem, terms: Terms, solution: Solution, price: Floats, scale: float
) -> list[str]:
    """Compare the claimed reduced costs with loss + λ·cost less its minimum over the group."""
    claimed = solution.certificate.get("reduced_costs", {})
    index = {g.name: i for i, g in enumerate(problem.groups)}
    alone = singles(terms, 1.0, price)
    alone -= alone.min(axis=1, keepdims=True)
    size = scale + float(price @ terms.scale)
    for name, values in claimed.items():
        count = len(problem.groups[index[name]].candidates) if name in index else -1
        if len(values) != count:
            return [f"reduced costs of {name!r} do not belong to a group's candidates"]
        right = alone[index[name], :count]
        if not np.allclose(values, right, rtol=TOLERANCE, atol=TOLERANCE * size):
            return [f"the reduced costs of {name!r} are {right.tolist()}, not {list(values)}"]
    return []


def _check_infeasible(terms: Terms, steps: list[Step] | None, solution: Solution) -> Report:
    faults = []
    if solution.assignment or solution.usage:
        faults.append("an infeasible problem has no assignment and no usage")
    if (solution.loss, solution.bound, solution.gap) != (None, None, None):
        faults.append("an infeasible problem has no loss, bound or gap")
    price, more = None, list[str]()
    if "multipliers" in solution.certificate:
        price, more = _multipliers(terms, solution)
    excess = None if price is None or steps is None else least(terms, steps, 0.0, price)
    if excess is not None and excess > 0 and not more:
        return _infeasible_report(faults, "multipliers", excess)
    if excess is not None:
        more = ["the multipliers do not prove that nothing fits"]
    prices = [] if price is None else [price]
    found = None if steps is None else exists(terms, steps, prices, math.inf)
    if found:
        more.append("an assignment fits")
    return _infeasible_report(faults + more, "search" if found is None else "enumeration", excess)


def _infeasible_report(faults: list[str], proven: Proven, excess: float | None) -> Report:
    return Report(
        faults=tuple(faults), proven="wrong" if faults else proven, lagrangian_bound=excess
    )


def _scale(problem: Problem) -> float:
    """Return the size of the losses: what rounding errors are measured against.

    The median over the groups' candidates, so that one huge loss does not hide all others.
    """
    return math.fsum(median(abs(c.loss) for c in g.candidates) for g in problem.groups)


def _close(one: float, other: float, scale: float) -> bool:
    return abs(one - other) <= TOLERANCE * max(abs(one), abs(other), scale)

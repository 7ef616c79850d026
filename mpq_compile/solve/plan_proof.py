"""The proof that a plan carries, verified from the plan alone: no network and no device needed.

A plan's certificate holds the problem that was solved beside what proves the answer. So whoever has
the plan, or the artifact that it stands in, can have it checked, or solve it again by other means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mpq_compile.errors import PlanError
from mpq_compile.solve.certificate import Report, check
from mpq_compile.solve.problem import Problem, Solution, evaluate
from mpq_compile.types import Plan

# What two sums of the same numbers in another order may differ by, relatively.
TOLERANCE = 1e-9


def problem_of(plan: Plan) -> Problem:
    """Return the problem that a plan is the answer to.

    Costs are in the solver's units (µs, bytes), budgets without what the network costs beside its
    sites. Where a cost was minimised, it is the problem's loss, and the metric's loss a budget. Of
    a plan that was chosen by the network's own loss it is the problem of the metric's table, which
    proves that the plan is within the budget, and bounds what the table says could be gained.

    Raises:
        PlanError: The plan carries none: its bits were given.
    """
    data = plan.certificate.get("problem")
    if data is None:
        raise PlanError(
            "the plan carries no proof",
            where="plan.certificate",
            expected="a plan that a solver of tables made",
            found=f"one by {plan.solver!r}",
            remedy="plan with solver='exact'",
        )
    return Problem.from_json(data)


def solution_of(plan: Plan) -> Solution:
    """Return what a plan claims of its problem.

    Raises:
        PlanError: As :func:`problem_of`, or the assignment is none of the problem's.
    """
    problem, certificate = problem_of(plan), plan.certificate
    names = [group.name for group in problem.groups if group.name in plan.assignment]
    assignment = {name: plan.assignment[name] for name in names}
    value, usage = evaluate(problem, assignment)
    return Solution(
        status=certificate.get("status", "none"),
        assignment=assignment,
        loss=value if plan.minimised else plan.loss,
        usage=usage,
        bound=certificate.get("bound"),
        gap=certificate.get("gap"),
        solver=plan.solver,
        wall_s=certificate.get("wall_s", 0.0),
        certificate={k: v for k, v in certificate.items() if k != "problem"},
    )


def check_plan(plan: Plan) -> Report:
    """Verify a plan's proof, and that its problem is that of its table and of its budget.

    Raises:
        PlanError: The plan carries no proof.
    """
    problem = problem_of(plan)
    try:
        solution = solution_of(plan)
    except PlanError as error:
        return Report(faults=(error.message,), proven="wrong")
    report = check(problem, solution)
    faults = (*report.faults, *_ties(plan), *_table(plan, problem), *_budget(plan))
    return replace(report, faults=faults, proven="wrong" if faults else report.proven)


def _ties(plan: Plan) -> Iterator[str]:
    """Sites that share a weight have one candidate."""
    group_of = {row["site"]: row["group"] for row in plan.table}
    chosen: dict[str, str] = {}
    for site, name in plan.assignment.items():
        if chosen.setdefault(group_of.get(site, site), name) != name:
            yield f"{site} is tied to a site that has {chosen[group_of[site]]}, not {name}"


def _table(plan: Plan, problem: Problem) -> Iterator[str]:
    """Losses and sizes of sites, those of ties together, are those of the problem."""
    terms = {g.name: {c.name: c for c in g.candidates} for g in problem.groups}
    ties: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in plan.table:
        ties.setdefault((row["group"], row["candidate"]), []).append(row)
    for (_, candidate), rows in ties.items():
        # A tie's group bears the name of its first site.
        term = terms.get(rows[0]["site"], {}).get(candidate)
        if term is None:
            continue
        expected = {"loss": term.costs["loss"] if plan.minimised else term.loss}
        if "size_bytes" in term.costs:
            expected["size_bytes"] = term.costs["size_bytes"]
        for name, value in expected.items():
            found = sum(row[name] for row in rows)
            if not math.isclose(found, value, rel_tol=TOLERANCE):
                sites = ", ".join(row["site"] for row in rows)
                yield (
                    f"the {name} of {sites} at {candidate} is {found} in the table, {value} in "
                    "the problem"
                )


def _budget(plan: Plan) -> Iterator[str]:
    """What is predicted exactly is within the budget."""
    predicted = plan.predicted
    found = {
        "size_mb": predicted.size_bytes / 1e6,
        "bops": predicted.bops,
        "avg_bits": predicted.avg_bits,
        "peak_activation_mb": predicted.peak_activation_bytes / 1e6,
        "energy_mj": predicted.energy_mj,
        "max_loss": plan.loss,
    }
    for name, limit in plan.budget.items():
        value = found.get(name)
        if value is not None and value > limit * (1 + TOLERANCE) + 1e-12:
            yield f"{name} is {value:g}, above its budget {limit:g}"

"""From what a search proved to the solution that a user sees."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpq_compile.solve.lagrangian import Dual
from mpq_compile.solve.problem import Problem, Solution, evaluate, relative_gap
from mpq_compile.solve.tables import Floats, Incumbent, Tables


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What is known of a problem.

    Attributes:
        incumbent: Best assignment found, None if none.
        bound: Lower bound on every loss within the budget.
        proved: The part of it that the multipliers prove, with what integers add.
        extra: What else the certificate needs.
        complete: True where nothing was left unexplored: the incumbent is optimal, or, where
            there is none, nothing fits.
    """

    incumbent: Incumbent | None
    bound: float
    dual: Dual
    states: int
    complete: bool
    proved: float = -np.inf
    extra: Mapping[str, Any] = field(default_factory=dict)


def answer(
    problem: Problem, tables: Tables, proof: Proof, *, solver: str, start: float
) -> Solution:
    """Turn a proof with an incumbent into a solution; its loss and usage are evaluated anew."""
    assert proof.incumbent is not None
    assignment = {
        g.name: g.candidates[int(c)].name
        for g, c in zip(problem.groups, proof.incumbent.choice, strict=True)
    }
    loss, usage = evaluate(problem, assignment)
    bound = loss if proof.complete else min(proof.bound, loss)
    return Solution(
        status="optimal" if proof.complete else "feasible",
        assignment=assignment,
        loss=loss,
        usage=usage,
        bound=bound,
        gap=relative_gap(loss, bound),
        solver=solver,
        wall_s=time.perf_counter() - start,
        certificate=_certificate(problem, tables, proof, bound),
    )


def infeasible(
    tables: Tables,
    proof: Proof,
    attainable: Mapping[str, float],
    needed: Mapping[str, float | None],
    *,
    solver: str,
    start: float,
) -> Solution:
    """Say what can be attained, which budget binds, and what it has to be at least.

    ``attainable`` is the least usage on each axis alone, ``needed`` beside the other budgets.
    """
    limits = dict(zip(tables.axes, tables.limit.tolist(), strict=True))
    binding = [axis for axis in attainable if attainable[axis] > limits[axis]]
    if not attainable and tables.axes:
        reason = "the pairs forbid every assignment"
    elif binding:
        least = [f"the least {axis} is {attainable[axis]:g}" for axis in binding]
        reason = f"{' and '.join(least)}: more than {'its' if len(least) == 1 else 'their'} budget"
    else:
        least = [f"{axis} {value:g}" for axis, value in needed.items() if value is not None]
        reason = "each budget can be met alone, but not all together: with the others as they are"
        reason += f", the least that would do is {' or '.join(least)}"
    certificate: dict[str, Any] = {
        "method": "multipliers" if proof.states == 0 else "search",
        "reason": reason,
        "attainable": dict(attainable),
        "binding": binding[0] if binding else None,
        "least_budget": dict(needed),
    }
    if not proof.dual.feasible:
        certificate["multipliers"] = _by_axis(tables, proof.dual.price)
    return Solution(
        status="infeasible",
        assignment={},
        loss=None,
        usage={},
        bound=None,
        gap=None,
        solver=solver,
        wall_s=time.perf_counter() - start,
        certificate=certificate,
    )


def _certificate(problem: Problem, tables: Tables, proof: Proof, bound: float) -> dict[str, Any]:
    """Return the multipliers, what they prove, and whether the bound rests on them alone."""
    dual = proof.dual
    proved = max(dual.bound, proof.proved)
    alone = bound - proved <= 1e-9 * max(abs(bound), abs(proved))
    return {
        "multipliers": _by_axis(tables, dual.price),
        "lagrangian_bound": float(dual.bound),
        "method": "multipliers" if alone else "search",
        "states": proof.states,
        "reduced_costs": _reduced_costs(problem, tables, dual.price),
        **proof.extra,
    }


def _reduced_costs(problem: Problem, tables: Tables, price: Floats) -> dict[str, list[float]]:
    """Return by how much each candidate of a group without pairs lifts the Lagrangian bound."""
    counts = np.array([len(g.candidates) for g in problem.groups])
    there = np.arange(tables.loss.shape[1]) < counts[:, None]
    costs = np.where(there, tables.loss + np.tensordot(price, tables.cost, axes=1), np.inf)
    rows = (costs - costs.min(axis=1, keepdims=True)).tolist()
    paired = set(tables.paired())
    return {
        group.name: row[: len(group.candidates)]
        for g, (group, row) in enumerate(zip(problem.groups, rows, strict=True))
        if g not in paired
    }


def _by_axis(tables: Tables, price: np.ndarray) -> dict[str, float]:
    return dict(zip(tables.axes, price.tolist(), strict=True))

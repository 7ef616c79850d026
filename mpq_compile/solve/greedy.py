"""The greedy solver: fast, always within the budget, with a bound that says how far it may be off.

MPQCO's allocation (Chen, Wang & Cheng, "Towards Mixed-Precision Quantization of Neural Networks
via Constrained Optimization", ICCV 2021, its Algorithm 1): from the cheapest assignment, take the
upgrade with the largest fall of loss per cost along each group's lower convex hull, until nothing
fits. [derived]: the direction, what follows the hull, several budgets and pair terms are ours.
"""

from __future__ import annotations

import time

import numpy as np

from mpq_compile.solve.answer import Proof
from mpq_compile.solve.conclusion import build_reduced, conclude
from mpq_compile.solve.dominance import lower_hull
from mpq_compile.solve.elimination import plan_elimination
from mpq_compile.solve.lagrangian import Dual, maximise_dual, minimise
from mpq_compile.solve.moves import climb, first_incumbent
from mpq_compile.solve.optimise import optimise
from mpq_compile.solve.order import order_paired
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.tables import Bools, Floats, Incumbent, Ints, Tables


def solve_greedy(problem: Problem, *, time_limit_s: float | None = None) -> Solution:
    """Return a good assignment within the budget, and the Lagrangian bound.

    Several budgets count by their sum, each axis divided by its slack above the least usage; the
    change that a pair brings is computed anew after each step. A last climb takes what still
    fits beside the hulls. Where the cheapest assignment exceeds one of several budgets, the climb
    starts from what the Lagrangian or, if need be, a search finds.

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    start = time.perf_counter()
    deadline = np.inf if time_limit_s is None else start + time_limit_s
    tables = build_reduced(problem)
    plan = plan_elimination(tables, order_paired(tables))
    dual = maximise_dual(tables, plan)
    if not dual.feasible:
        proof = Proof(incumbent=None, bound=np.inf, dual=dual, states=0, complete=True)
        return conclude(problem, tables, proof, solver="greedy", start=start)
    price = _normalised(tables, [minimise(tables, plan, 0.0, e).value for e in _axes(tables)])
    cheapest = minimise(tables, plan, 0.0, price).choice
    if not (tables.worth(cheapest)[0] < np.inf and tables.fits(cheapest)):
        return _from_elsewhere(problem, tables, dual, price, deadline, start)
    choice = climb(tables.allowing(_hulls(tables)), cheapest, price)
    proof = _proof(tables, dual, climb(tables, choice, price))
    return conclude(problem, tables, proof, solver="greedy", start=start)


def _axes(tables: Tables) -> Floats:
    return np.eye(len(tables.axes))


def _normalised(tables: Tables, excess: list[float]) -> Floats:
    """Return 1 / slack per axis, where ``excess`` is the least usage above the limit."""
    spread = np.abs(tables.cost).max(axis=2).sum(axis=1)
    slack = np.maximum(-np.array(excess), 1e-6 * np.where(spread > 0, spread, 1.0))
    return 1.0 / slack


def _hulls(tables: Tables) -> Bools:
    """Return the candidates on the hulls of groups without pairs; only one budget has hulls."""
    if len(tables.axes) != 1:
        return tables.allowed
    allowed = tables.allowed.copy()
    for g in set(range(len(allowed))) - set(tables.paired()):
        index = np.flatnonzero(tables.allowed[g])
        allowed[g] = False
        allowed[g, index[lower_hull(tables.cost[0, g, index], tables.loss[g, index])]] = True
    return allowed


def _proof(tables: Tables, dual: Dual, choice: Ints) -> Proof:
    loss, _ = tables.worth(choice)
    # Equal to its own bound, the greedy answer is optimal and needs no search to say so.
    complete = loss <= dual.bound
    incumbent = Incumbent(choice=choice, loss=loss)
    return Proof(incumbent=incumbent, bound=dual.bound, dual=dual, states=0, complete=complete)


def _from_elsewhere(
    problem: Problem, tables: Tables, dual: Dual, price: Floats, deadline: float, start: float
) -> Solution:
    incumbent = first_incumbent(tables, dual)
    if incumbent is None:
        found = optimise(tables, deadline=deadline, first_only=True)
        if found.incumbent is None:
            return conclude(problem, tables, found, solver="greedy", start=start)
        incumbent = found.incumbent
    proof = _proof(tables, dual, climb(tables, incumbent.choice, price))
    return conclude(problem, tables, proof, solver="greedy", start=start)

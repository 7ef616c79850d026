"""The greedy solver: fast, always within the budget, with a bound that says how far it may be off.

MPQCO's allocation (Chen, Wang & Cheng, "Towards Mixed-Precision Quantization of Neural Networks
via Constrained Optimization", ICCV 2021, its Algorithm 1): from the cheapest assignment, take the
upgrade with the largest fall of loss per cost along each group's lower convex hull, until nothing
fits. [derived]: the direction, what follows the hull, several budgets and pair terms are ours.
"""

from __future__ import annotations

import numpy as np

from mpq_compile.solve.dominance import lower_hull
from mpq_compile.solve.feasible import prepare
from mpq_compile.solve.moves import climb
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.tables import Bools, Tables


def solve_greedy(problem: Problem, *, time_limit_s: float | None = None) -> Solution:
    """Return a good assignment within the budget, and the Lagrangian bound.

    Several budgets count by their sum, each axis divided by its slack above the least usage; the
    change that a pair brings is computed anew after each step. A last climb takes what still
    fits beside the hulls. Where the cheapest assignment exceeds one of several budgets, the climb
    starts from what the Lagrangian or, if need be, a search finds.

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    grounds = prepare(problem, time_limit_s)
    incumbent = grounds.feasible.incumbent
    if incumbent is None:
        return grounds.nothing_fits("greedy")
    tables, choice = grounds.tables, incumbent.choice
    choice = climb(tables.allowing(_hulls(tables)), choice, grounds.price)
    return grounds.conclude(climb(tables, choice, grounds.price), "greedy")


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

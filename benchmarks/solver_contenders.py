"""Other solvers on the plain model, one binary variable a candidate: HiGHS and OR-tools CP-SAT.

Each returns (seconds, relative gap reached), infinite where nothing was found. Models with pairs
are not theirs to solve here. Building a model is not counted.
"""

from __future__ import annotations

import math
import time

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mpq_compile.solve import Problem

try:
    from ortools.sat.python import cp_model

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

# Real coefficients are rounded to this many steps of the largest: a coarser problem, not the same.
STEPS = 10**7


def solve_cp_sat(problem: Problem, limit_s: float, gap: float) -> tuple[float, float]:
    """Run CP-SAT on one thread; coefficients that are not whole are scaled and rounded."""
    model = cp_model.CpModel()
    groups = [[model.new_bool_var("") for _ in g.candidates] for g in problem.groups]
    for chosen in groups:
        model.add_exactly_one(chosen)
    terms = [c for g in problem.groups for c in g.candidates]
    flat = [x for chosen in groups for x in chosen]
    for axis, budget in problem.budget.items():
        weights, scale = _whole([c.costs[axis] for c in terms])
        model.add(sum(w * x for w, x in zip(weights, flat, strict=True)) <= int(budget * scale))
    losses, _ = _whole([c.loss for c in terms])
    model.minimize(sum(w * x for w, x in zip(losses, flat, strict=True)))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.relative_gap_limit = gap
    solver.parameters.num_workers = 1
    start = time.perf_counter()
    status = solver.solve(model)
    seconds = time.perf_counter() - start
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return seconds, math.inf
    value, bound = solver.objective_value, solver.best_objective_bound
    return seconds, (value - bound) / max(1.0, abs(value))


def _whole(values: list[float]) -> tuple[list[int], float]:
    """Return whole numbers and the factor that makes them, 1 where they are whole already."""
    if all(v == int(v) for v in values):
        return [int(v) for v in values], 1.0
    scale = STEPS / max(map(abs, values))
    return [math.ceil(v * scale) for v in values], scale


def solve_plain_highs(problem: Problem, limit_s: float, gap: float) -> tuple[float, float]:
    """Run HiGHS through SciPy."""
    loss = np.array([c.loss for g in problem.groups for c in g.candidates])
    costs = [[c.costs[a] for g in problem.groups for c in g.candidates] for a in problem.budget]
    sizes = [len(g.candidates) for g in problem.groups]
    rows = np.repeat(np.arange(len(sizes)), sizes)
    one = csr_array((np.ones(len(loss)), (rows, np.arange(len(loss)))))
    constraints = [
        LinearConstraint(one, 1, 1),
        LinearConstraint(np.array(costs), -np.inf, list(problem.budget.values())),
    ]
    start = time.perf_counter()
    result = milp(
        loss,
        integrality=np.ones(len(loss)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": gap, "time_limit": limit_s},
    )
    seconds = time.perf_counter() - start
    return seconds, math.inf if result.x is None else float(result.mip_gap)

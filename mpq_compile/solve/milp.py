"""The reference solver: HiGHS through ``scipy.optimize.milp``, pair terms linearised.

    x_gc ∈ {0, 1}, Σ_c x_gc = 1;  for each pair y_ij ≥ 0, Σ_j y_ij = x_ai, Σ_i y_ij = x_bj

With x integral, y_ij = x_ai·x_bj follows (the first level of Sherali & Adams 1990); the linear
relaxation is tight where the pairs form a forest and there is no budget.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpq_compile.solve.answer import Proof
from mpq_compile.solve.conclusion import build_reduced, conclude
from mpq_compile.solve.elimination import plan_elimination
from mpq_compile.solve.lagrangian import Dual, maximise_dual
from mpq_compile.solve.moves import first_incumbent
from mpq_compile.solve.optimise import optimise
from mpq_compile.solve.order import order_paired
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.reduction import within_gap
from mpq_compile.solve.tables import Floats, Incumbent, Ints, Tables

# HiGHS accepts rows and gaps that are off by 1e-6 in absolute terms: scaled up, that is little.
ROW_SCALE = 1e3
LOSS_SCALE = 1e4
FEASIBILITY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Program:
    """Minimise objective·z with z in [0, upper], equal·z = right and spend·z ≤ limit.

    The first ``binary`` entries of z are x, indexed by (group, candidate) in ``index``.
    """

    objective: Floats
    upper: Floats
    equal: tuple[Ints, Ints, Floats]
    right: Floats
    spend: Floats
    limit: Floats
    binary: int
    index: Ints


def solve_milp(
    problem: Problem, *, time_limit_s: float | None = None, gap: float = 0.0
) -> Solution:
    """Return HiGHS's optimum, or after ``time_limit_s`` the best it found with its gap.

    With ``gap`` above 0 it also ends where the relative gap is no larger.

    Every answer is evaluated anew; where HiGHS took its tolerance to exceed a budget, it is asked
    again under a budget smaller by that tolerance, and the answer is called feasible only.

    Raises:
        ImportError: SciPy is not installed.
        MpqError: The time was over before anything that fits was found.
    """
    start = time.perf_counter()
    deadline = np.inf if time_limit_s is None else start + time_limit_s
    tables = build_reduced(problem)
    plan = plan_elimination(tables, order_paired(tables))
    dual = maximise_dual(tables, plan)
    if not dual.feasible:
        proof = Proof(incumbent=None, bound=np.inf, dual=dual, states=0, complete=True)
        return conclude(problem, tables, proof, solver="milp", start=start)
    incumbent = first_incumbent(tables, dual)
    # A huge loss that no good answer takes would drown the others in HiGHS's tolerances.
    tables = tables.allowing(within_gap(tables, dual, incumbent))
    proof = _prove(tables, dual, incumbent, deadline, gap)
    return conclude(problem, tables, proof, solver="milp", start=start)


def _prove(
    tables: Tables, dual: Dual, incumbent: Incumbent | None, deadline: float, gap: float
) -> Proof:
    program = _program(tables)
    result = _run(program, program.limit, deadline, gap)
    bound = _bound(result, dual)
    found = _found(tables, program, result)
    complete = result.status == 0 and found is not None and gap == 0
    if result.status == 0 and found is None:
        margin = 2 * FEASIBILITY / ROW_SCALE * np.abs(program.spend).max(axis=1, initial=0.0)
        found = _found(tables, program, _run(program, program.limit - margin, deadline))
    best = min((i for i in (found, incumbent) if i), key=lambda i: i.loss, default=None)
    if best is None:
        # What HiGHS does not find is, within its tolerance, not proven to be absent.
        return optimise(tables, deadline=deadline, first_only=True)
    return Proof(
        incumbent=best,
        bound=bound,
        dual=dual,
        states=0,
        complete=complete,
    )


def _program(tables: Tables) -> Program:
    groups, candidates = np.nonzero(tables.allowed)
    index = np.full(tables.loss.shape, -1, dtype=np.int64)
    index[groups, candidates] = np.arange(len(groups))
    objective = [tables.loss[groups, candidates]]
    spend = [tables.cost[:, groups, candidates]]
    upper = [np.ones(len(groups))]
    rows, columns, values = [groups], [np.arange(len(groups))], [np.ones(len(groups))]
    right = [np.ones(len(index))]
    first_row, first_column = len(index), len(groups)
    for pair in tables.pairs:
        y = first_column + np.arange(pair.loss.size).reshape(pair.loss.shape)
        objective.append(pair.loss.ravel())
        spend.append(pair.cost.reshape(len(tables.axes), pair.loss.size))
        upper.append(np.where(pair.forbidden, 0.0, 1.0).ravel())
        for group, links in ((pair.a, y), (pair.b, y.T)):
            for k, linked in enumerate(links):
                members = index[group, (tables.classes[group] == k) & tables.allowed[group]]
                rows.append(np.full(len(linked) + len(members), first_row))
                columns.append(np.concatenate([linked, members]))
                values.append(np.repeat([1.0, -1.0], [len(linked), len(members)]))
                right.append(np.zeros(1))
                first_row += 1
        first_column += y.size
    return Program(
        objective=np.concatenate(objective),
        upper=np.concatenate(upper),
        equal=(np.concatenate(rows), np.concatenate(columns), np.concatenate(values)),
        right=np.concatenate(right),
        spend=np.concatenate(spend, axis=1),
        limit=tables.limit,
        binary=len(groups),
        index=index,
    )


def _run(program: Program, limit: Floats, deadline: float, gap: float = 0.0) -> Any:
    """Run HiGHS; its objective comes back unscaled."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    count = len(program.objective)
    rows, columns, values = program.equal
    equal = coo_array((values, (rows, columns)), shape=(len(program.right), count)).tocsr()
    constraints = [LinearConstraint(equal, program.right, program.right)]
    if len(limit):
        row = ROW_SCALE / _nonzero(np.abs(program.spend).max(axis=1))
        spend = program.spend * row[:, None]
        constraints.append(LinearConstraint(spend, -np.inf, limit * row))
    scale = LOSS_SCALE / float(_nonzero(np.abs(program.objective).max()))
    options: dict[str, Any] = {"mip_rel_gap": gap, "disp": False}
    if np.isfinite(deadline):
        options["time_limit"] = max(0.01, deadline - time.perf_counter())
    with _stdout_to_stderr():
        result = milp(
            program.objective * scale,
            integrality=np.arange(count) < program.binary,
            bounds=Bounds(np.zeros(count), program.upper),
            constraints=constraints,
            options=options,
        )
    if result.mip_dual_bound is not None:
        result.mip_dual_bound /= scale
    return result


def _nonzero(size: Floats) -> Floats:
    return np.where(size > 0, size, 1.0)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send file descriptor 1 to 2: HiGHS prints there even when told not to."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _found(tables: Tables, program: Program, result: Any) -> Incumbent | None:
    """Round x to a choice; None where there is none or it does not fit."""
    if result.x is None:
        return None
    x = np.where(program.index >= 0, result.x[program.index], -1.0)
    choice = x.argmax(axis=1)
    loss, _ = tables.worth(choice)
    if loss == np.inf or not tables.fits(choice):
        return None
    return Incumbent(choice=choice, loss=loss)


def _bound(result: Any, dual: Dual) -> float:
    """Return the better of HiGHS's bound, less its tolerance, and the Lagrangian one."""
    if result.mip_dual_bound is None or not np.isfinite(result.mip_dual_bound):
        return dual.bound
    slack = 1e-9 * max(1.0, abs(float(result.mip_dual_bound)))
    return max(dual.bound, float(result.mip_dual_bound) - slack)

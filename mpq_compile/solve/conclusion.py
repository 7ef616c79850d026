"""From a proof to the answer, where nothing fits with what each budget would have to be."""

from __future__ import annotations

import time
from dataclasses import replace

from mpq_compile.errors import MpqError
from mpq_compile.solve.answer import Proof, answer, infeasible
from mpq_compile.solve.block_bound import bound_blocks, without_pairs
from mpq_compile.solve.dominance import drop_dominated
from mpq_compile.solve.optimise import optimise
from mpq_compile.solve.order import WIDE, open_bits
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.tables import Tables, build_tables

# Of an infeasible problem, seconds for the least usage of each axis.
LEAST_S = 2.0
# Seconds for the bound of a problem with dense pairs whose solver has another one.
MESSAGES_S = 1.0


def build_reduced(problem: Problem) -> Tables:
    """Return the problem's arrays without its dominated candidates."""
    tables = build_tables(problem)
    return tables.allowing(drop_dominated(tables))


def conclude(
    problem: Problem, tables: Tables, proof: Proof, *, solver: str, start: float
) -> Solution:
    """Turn a proof into a solution, whether something fits or not."""
    if proof.incumbent is not None:
        if not proof.extra and open_bits(tables) > WIDE:
            proof = _with_messages(problem, proof, proof.incumbent.loss)
        return answer(problem, tables, proof, solver=solver, start=start)
    if not proof.complete:
        raise MpqError(
            "the time was over before an assignment within the budget was found",
            where="solve",
            expected="an assignment, or the proof that there is none",
            found=f"{proof.states} partial assignments explored",
            remedy="raise time_limit_s, or the budget",
        )
    attainable, needed = _least_usage(tables), _least_budgets(tables)
    return infeasible(tables, proof, attainable, needed, solver=solver, start=start)


def _with_messages(problem: Problem, proof: Proof, loss: float) -> Proof:
    """Return the proof with a bound that the checker can follow where it cannot eliminate."""
    tables = build_tables(problem)
    end = time.perf_counter() + MESSAGES_S
    bound = bound_blocks(tables, without_pairs(tables), loss, deadline=end)
    better = max(proof.bound, bound.best.bound)
    return replace(proof, dual=bound.dual, bound=better, extra=bound.certificate)


def _least_usage(tables: Tables) -> dict[str, float]:
    """Return the least usage on each axis taken alone; empty where no assignment is allowed."""
    least: dict[str, float] = {}
    for d, axis in enumerate(tables.axes):
        usage = _least_on(tables, d, [])
        if usage is None:
            return {}
        least[axis] = usage
    return least


def _least_budgets(tables: Tables) -> dict[str, float | None]:
    """Return for each axis what its budget has to be at least, the others being as they are.

    None where the others alone cannot be met. A search that takes too long stands by the least
    that it found, which is enough.
    """
    every = range(len(tables.axes))
    return {
        axis: _least_on(tables, d, [other for other in every if other != d])
        for d, axis in enumerate(tables.axes)
    }


def _least_on(tables: Tables, axis: int, others: list[int]) -> float | None:
    """Return the least usage on ``axis`` that was found within the budgets of ``others``."""
    pairs = tuple(replace(p, loss=p.cost[axis], cost=p.cost[others]) for p in tables.pairs)
    least = replace(
        tables,
        axes=tuple(tables.axes[d] for d in others),
        loss=tables.cost[axis],
        cost=tables.cost[others],
        limit=tables.limit[others],
        scale=tables.scale[others],
        pairs=pairs,
    )
    found = optimise(least, deadline=time.perf_counter() + LEAST_S).incumbent
    return None if found is None else found.loss

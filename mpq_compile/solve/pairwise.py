"""The solver for pair terms on any graph, dense ones too: a quadratic objective.

    minimise  Σ_g loss_g(x_g) + Σ_(a,b) loss_ab(x_a, x_b)   within budgets that may have pairs too

Groups are put together in blocks (:mod:`blocks`); messages between these bound the loss from below
(:mod:`block_dual`), and branch and bound over blocks closes the gap (:mod:`block_search`). What is
too large for that keeps the answer of a local search (:mod:`kicks`), with the bound that the
messages prove. [derived]: CLADO (Deng et al., DAC 2025) leaves its quadratic program to a solver
for convex integer programs, and clips the matrix for it; here it need not be convex.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from mpq_compile.solve.answer import Proof
from mpq_compile.solve.block_dual import BlockDual, huge_loss, maximise_blocks, weigh
from mpq_compile.solve.block_search import BlockSearch
from mpq_compile.solve.blocks import Blocks, build_blocks
from mpq_compile.solve.conclusion import conclude
from mpq_compile.solve.elimination import plan_elimination
from mpq_compile.solve.kicks import iterate
from mpq_compile.solve.lagrangian import Dual, maximise_dual
from mpq_compile.solve.lattice import lattices
from mpq_compile.solve.moves import climb
from mpq_compile.solve.problem import Problem, Solution, relative_gap
from mpq_compile.solve.tables import Floats, Incumbent, Ints, Tables, build_tables

# Candidates of all groups up to which changes are tried in twos.
TWOS = 2000
# Blocks up to which the gap is searched for by branch and bound.
SEARCHED = 64
# Of the time limit, what the local search and what the bound may take.
MOVING, BOUNDING = 0.2, 0.4


def solve_pairwise(
    problem: Problem, *, time_limit_s: float | None = None, gap: float = 0.0
) -> Solution:
    """Return a proven optimum, or after ``time_limit_s`` the best found with its gap.

    With ``gap`` above 0 the search also ends where its relative gap is no larger. Without a time
    limit, problems of more than 64 blocks end with the bound of the messages.

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    start = time.perf_counter()
    tables = build_tables(problem)
    proof = optimise_blocks(tables, start=start, time_limit_s=time_limit_s, gap=gap)
    return conclude(problem, tables, proof, solver="pairwise", start=start)


def optimise_blocks(
    tables: Tables, *, start: float, time_limit_s: float | None, gap: float = 0.0
) -> Proof:
    """Search ``tables``, which hold all candidates, for the least loss."""
    limit = math.inf if time_limit_s is None else time_limit_s
    price, minimiser = _without_pairs(tables)
    incumbent = _moved(tables, minimiser, price, start + MOVING * limit)
    blocks = build_blocks(tables)
    known = math.inf if incumbent is None else incumbent.loss
    dual = maximise_blocks(tables, blocks, price, known, deadline=start + BOUNDING * limit)
    proof = _proof(blocks, dual, incumbent)
    if incumbent is not None and _met(incumbent.loss, dual.bound, gap):
        return replace(proof, complete=dual.bound >= incumbent.loss)
    if len(blocks.members) > SEARCHED and incumbent is not None:
        return proof
    return _searched(tables, blocks, dual, proof, deadline=start + limit, gap=gap)


def _met(loss: float, bound: float, gap: float) -> bool:
    return bound >= loss or 0 < relative_gap(loss, bound) <= gap


def _without_pairs(tables: Tables) -> tuple[Floats, Ints]:
    """Return multipliers of the problem without its pairs, and a choice to start from."""
    plain = replace(tables, pairs=())
    dual = maximise_dual(plain, plan_elimination(plain, []))
    columns = [c for c in dual.columns if len(c.choice)]
    least = min(columns, key=lambda c: float(np.maximum(c.slack, 0.0).sum()))
    price = dual.price if dual.feasible else np.zeros(len(tables.axes))
    return price, least.choice


def _moved(tables: Tables, choice: Ints, price: Floats, deadline: float) -> Incumbent | None:
    if tables.loss.size <= TWOS:
        return iterate(tables, choice, deadline=deadline)
    loss, _ = tables.worth(choice)
    if loss == math.inf or not tables.fits(choice):
        return None
    climbed = climb(tables, choice, price)
    return Incumbent(choice=climbed, loss=tables.worth(climbed)[0])


def _searched(
    tables: Tables, blocks: Blocks, dual: BlockDual, proof: Proof, *, deadline: float, gap: float
) -> Proof:
    whole = [x.step for x in lattices(tables, dual.price) if not x.weight.any()]
    search = BlockSearch(
        tables,
        blocks,
        weigh(blocks, dual.price, huge_loss(blocks)),
        dual,
        proof.incumbent,
        step=whole[0] if whole else 0.0,
        gap=gap,
        deadline=deadline,
    )
    search.run()
    return replace(
        proof,
        incumbent=search.incumbent,
        bound=max(dual.bound, search.open_bound),
        states=search.nodes,
        complete=search.open_bound == math.inf,
    )


def _proof(blocks: Blocks, dual: BlockDual, incumbent: Incumbent | None) -> Proof:
    return Proof(
        incumbent=incumbent,
        bound=dual.bound,
        dual=Dual(feasible=True, price=dual.price, bound=dual.bound, columns=(), prices=()),
        states=0,
        complete=False,
        extra=_certificate(blocks, dual),
    )


def _certificate(blocks: Blocks, dual: BlockDual) -> dict[str, Any]:
    """Return the blocks, and the messages as ``[k, l, to k, to l]``, for the checker."""
    return {
        "blocks": [list(members) for members in blocks.members],
        "messages": [
            [k, m, dual.messages[k, m].tolist(), dual.messages[m, k].tolist()]
            for k, m in blocks.pair_loss
        ],
    }

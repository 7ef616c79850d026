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

import numpy as np

from mpq_compile.solve.answer import Proof
from mpq_compile.solve.block_bound import BlockBound, bound_blocks, without_pairs
from mpq_compile.solve.block_dual import huge_loss, weigh
from mpq_compile.solve.block_search import BlockSearch
from mpq_compile.solve.conclusion import conclude
from mpq_compile.solve.kicks import iterate
from mpq_compile.solve.lagrangian import Dual
from mpq_compile.solve.lattice import lattices
from mpq_compile.solve.moves import first_incumbent
from mpq_compile.solve.problem import Problem, Solution, relative_gap
from mpq_compile.solve.tables import Incumbent, Tables, build_tables

# Candidates of all groups up to which changes are tried in twos.
TWOS = 2000
# Pairs up to which single changes are climbed first.
PAIRS = 2000
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
    plain = without_pairs(tables)
    incumbent = _moved(tables, plain, deadline=start + MOVING * limit, end=start + limit)
    known = math.inf if incumbent is None else incumbent.loss
    bound = bound_blocks(tables, plain, known, deadline=start + BOUNDING * limit)
    proof = Proof(
        incumbent=incumbent,
        bound=bound.best.bound,
        dual=bound.dual,
        states=0,
        complete=incumbent is not None and bound.best.bound >= known,
        extra=bound.certificate,
    )
    large = len(bound.blocks.members) > SEARCHED and incumbent is not None
    near = incumbent is not None and 0 < relative_gap(known, proof.bound) <= gap
    if proof.complete or near or large:
        return proof
    return _searched(tables, bound, proof, deadline=start + limit, gap=gap)


def _moved(tables: Tables, plain: Dual, *, deadline: float, end: float) -> Incumbent | None:
    """Return the best answer of a local search, None where none was found that fits."""
    few = len(tables.pairs) <= PAIRS
    found = first_incumbent(tables, plain) if few else None
    if tables.loss.size > TWOS:
        return found
    columns = [c for c in plain.columns if len(c.choice)]
    nearest = min(columns, key=lambda c: float(np.maximum(c.slack, 0.0).sum())).choice
    start = nearest if found is None else found.choice
    moved = iterate(tables, start, deadline=deadline, end=end)
    known = [i for i in (found, moved) if i is not None]
    return min(known, key=lambda i: i.loss, default=None)


def _searched(
    tables: Tables, bound: BlockBound, proof: Proof, *, deadline: float, gap: float
) -> Proof:
    best = bound.best
    whole = [x.step for x in lattices(tables, best.price) if not x.weight.any()]
    search = BlockSearch(
        tables,
        bound.blocks,
        weigh(bound.blocks, best.price, huge_loss(bound.blocks)),
        best,
        proof.incumbent,
        step=whole[0] if whole else 0.0,
        gap=gap,
        deadline=deadline,
    )
    search.run()
    return replace(
        proof,
        incumbent=search.incumbent,
        bound=max(best.bound, search.open_bound),
        states=search.nodes,
        complete=search.open_bound == math.inf,
    )

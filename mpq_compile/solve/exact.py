"""The exact solver."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from mpq_compile.solve.conclusion import build_reduced, conclude
from mpq_compile.solve.optimise import optimise
from mpq_compile.solve.order import WIDE, open_bits
from mpq_compile.solve.pairwise import optimise_blocks
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.tables import build_tables


def solve_exact(
    problem: Problem, *, time_limit_s: float | None = None, gap: float = 0.0
) -> Solution:
    """Return a proven optimum, or after ``time_limit_s`` the best found with its gap.

    With ``gap`` above 0 the search also ends where its relative gap is no larger.

    Steps: drop dominated candidates; maximise the Lagrangian bound (:mod:`lagrangian`); climb
    from its minimisers to a first answer; drop candidates whose reduced cost exceeds the gap; and
    search layer by layer (:mod:`search`) in wider and wider beams, the last without a limit. The
    answer is optimal once a pass has dropped nothing but what a bound or dominance excludes. Of
    equal losses the first by group order, then candidate order, is returned, where no more than
    2²⁰ assignments are left to be told apart; of more, one that is found.

    Where so many pairs hang together that more than 16 bits of choice are open at once, blocks of
    groups take the place of layers, as in :mod:`pairwise`.

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    start = time.perf_counter()
    deadline = np.inf if time_limit_s is None else start + time_limit_s
    tables = build_reduced(problem)
    if open_bits(tables) > WIDE:
        tables = build_tables(problem)
        proof = optimise_blocks(tables, start=start, time_limit_s=time_limit_s, gap=gap)
    else:
        proof = optimise(tables, deadline=deadline, gap=gap)
    return conclude(problem, tables, proof, solver="exact", start=start)


def solve_auto(problem: Problem, *, time_limit_s: float | None = None) -> Solution:
    """Return the answer of the solver that a table calls for: :func:`solve_exact`, which hands
    dense pairs over to ``pairwise``."""
    return replace(solve_exact(problem, time_limit_s=time_limit_s), solver="auto")

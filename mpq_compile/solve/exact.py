"""The exact solver: Lagrangian bound, reduction, then a search that widens until it is complete."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mpq_compile.errors import MpqError
from mpq_compile.solve.answer import Proof, answer, infeasible
from mpq_compile.solve.dominance import drop_dominated
from mpq_compile.solve.elimination import Elimination, plan_elimination
from mpq_compile.solve.lagrangian import Dual, maximise_dual
from mpq_compile.solve.moves import climb
from mpq_compile.solve.order import order_paired
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.search import ROUNDING, Cuts, Incumbent, Search
from mpq_compile.solve.tables import Bools, Floats, Ints, Tables, build_tables

# Each pass is a beam; the next is wider, and starts from a better incumbent and a smaller problem.
BEAMS = (256, 2048, 16384, 131072)
# After the widest beam the rest is searched depth first, in chunks of this many states.
CHUNK = 8192
# Multiples of the best multipliers: bounds for states that have spent too little or too much.
STRETCHES = (0.5, 0.8, 0.9, 1.1, 1.25, 2.0)
MAX_CUTS = 48
SAMPLED_LAYERS = 6


def solve_exact(problem: Problem, *, time_limit_s: float | None = None) -> Solution:
    """Return a proven optimum, or after ``time_limit_s`` the best found with its gap.

    Steps: drop dominated candidates; maximise the Lagrangian bound (:mod:`lagrangian`); climb
    from its minimisers to a first answer; drop candidates whose reduced cost exceeds the gap; and
    search layer by layer (:mod:`search`) in wider and wider beams, the last without a limit. The
    answer is optimal once a pass has dropped nothing but what a bound or dominance excludes. Of
    equal losses the first by group order, then candidate order, is returned.

    Raises:
        MpqError: The time was over before anything that fits was found.
    """
    start = time.perf_counter()
    deadline = np.inf if time_limit_s is None else start + time_limit_s
    tables = build_reduced(problem)
    proof = optimise(tables, deadline=deadline)
    return conclude(problem, tables, proof, solver="exact", start=start)


def build_reduced(problem: Problem) -> Tables:
    """Return the problem's arrays without its dominated candidates."""
    tables = build_tables(problem)
    return tables.allowing(drop_dominated(tables))


def conclude(
    problem: Problem, tables: Tables, proof: Proof, *, solver: str, start: float
) -> Solution:
    """Turn a proof into a solution, whether something fits or not."""
    if proof.incumbent is not None:
        return answer(problem, tables, proof, solver=solver, start=start)
    if not proof.complete:
        raise MpqError(
            "the time was over before an assignment within the budget was found",
            where="solve",
            expected="an assignment, or the proof that there is none",
            found=f"{proof.states} partial assignments explored",
            remedy="raise time_limit_s, or the budget",
        )
    return infeasible(tables, proof, _least_usage(tables), solver=solver, start=start)


def _least_usage(tables: Tables) -> dict[str, float]:
    """Return the least usage on each axis taken alone; empty where no assignment is allowed."""
    least: dict[str, float] = {}
    for d, axis in enumerate(tables.axes):
        proof = optimise(_only_axis(tables, d), deadline=np.inf)
        if proof.incumbent is None:
            return {}
        least[axis] = proof.incumbent.loss
    return least


def _only_axis(tables: Tables, axis: int) -> Tables:
    """Return the problem of the least usage of one axis, without any budget."""
    pairs = tuple(replace(p, loss=p.cost[axis], cost=p.cost[:0]) for p in tables.pairs)
    return replace(
        tables,
        axes=(),
        loss=tables.cost[axis],
        cost=tables.cost[:0],
        limit=tables.limit[:0],
        pairs=pairs,
    )


def optimise(tables: Tables, *, deadline: float, first_only: bool = False) -> Proof:
    """Search ``tables`` for the least loss; with ``first_only`` for anything that fits."""
    plan = plan_elimination(tables, order_paired(tables))
    dual = maximise_dual(tables, plan)
    if not dual.feasible:
        return Proof(incumbent=None, bound=np.inf, dual=dual, states=0, complete=True)
    incumbent = first_incumbent(tables, dual)
    if first_only and incumbent is not None:
        return Proof(incumbent=incumbent, bound=dual.bound, dual=dual, states=0, complete=False)
    return _widen(tables, plan, dual, incumbent, deadline=deadline, first_only=first_only)


def _widen(
    tables: Tables,
    plan: Elimination,
    dual: Dual,
    incumbent: Incumbent | None,
    *,
    deadline: float,
    first_only: bool,
) -> Proof:
    cuts, bound, states = _first_cuts(tables, dual), dual.bound, 0
    for width, complete, end in _passes(deadline):
        if states and time.perf_counter() > deadline:
            break
        tables = tables.allowing(within_gap(tables, dual, incumbent))
        search = Search(
            tables,
            plan,
            cuts,
            _open_singles(tables, dual.price),
            incumbent=incumbent,
            width=width,
            complete=complete,
            deadline=end,
            first_only=first_only,
        )
        outcome = search.run()
        incumbent, states = outcome.incumbent, states + outcome.states
        if outcome.open_bound == np.inf:
            return _proof(incumbent, np.inf, dual, states, complete=True)
        bound = max(bound, outcome.open_bound)
        if first_only and incumbent is not None:
            break
        cuts = _more_cuts(cuts, tables, plan, search) if width > BEAMS[0] else cuts
    return _proof(incumbent, bound, dual, states, complete=False)


def _proof(
    incumbent: Incumbent | None, bound: float, dual: Dual, states: int, *, complete: bool
) -> Proof:
    return Proof(incumbent=incumbent, bound=bound, dual=dual, states=states, complete=complete)


def _passes(deadline: float) -> Iterator[tuple[int, bool, float]]:
    """Yield (width, complete, deadline); the first beam is so narrow that it always ends."""
    yield BEAMS[0], False, np.inf
    for width in BEAMS[1:]:
        yield width, False, deadline
    yield CHUNK, True, deadline


def first_incumbent(tables: Tables, dual: Dual) -> Incumbent | None:
    """Climb from each minimiser of the dual that fits; return the best."""
    starts = {c.choice.tobytes(): c.choice for c in dual.columns if len(c.choice)}
    worth = [(*tables.worth(x), x) for x in starts.values()]
    fitting = [(loss, x) for loss, _, x in worth if loss < np.inf and tables.fits(x)]
    if not fitting:
        return None
    _, best = min(fitting, key=lambda item: item[0])
    choice = climb(tables, best, dual.price)
    return Incumbent(choice=choice, loss=tables.worth(choice)[0])


def _first_cuts(tables: Tables, dual: Dual) -> Cuts:
    axes = len(tables.axes)
    stretches = (1.0, *STRETCHES) if dual.price.any() else (1.0,)
    bounds = np.outer(stretches, dual.price)
    return Cuts(
        weight=np.append(np.ones(len(bounds)), np.zeros(axes)),
        price=np.concatenate([bounds, np.eye(axes)]),
    )


def _more_cuts(cuts: Cuts, tables: Tables, plan: Elimination, search: Search) -> Cuts:
    """Add the best multipliers of what is left at states of least bound in several layers."""
    layers = search.samples
    room = MAX_CUTS - len(cuts.weight)
    if not layers or not len(tables.axes) or room <= 0:
        return cuts
    picked = np.unique(np.linspace(0, len(layers) - 1, SAMPLED_LAYERS + 2).astype(int)[1:-1])
    # With pairs a dual costs a hundred times more: one state a layer must do.
    states = 1 if plan.order else None
    found = [
        price
        for i in picked
        for row in layers[i][1].choice[:states]
        if (price := _price_below(tables, plan, search.layers[: layers[i][0]], row)) is not None
    ][:room]
    return Cuts(
        weight=np.append(cuts.weight, np.ones(len(found))),
        price=np.concatenate([cuts.price, *(price[None] for price in found)]),
    )


def _price_below(
    tables: Tables, plan: Elimination, assigned: list[int], choice: Ints
) -> Floats | None:
    """Return the best multipliers once ``assigned`` groups have their candidates."""
    allowed = tables.allowed.copy()
    allowed[assigned] = False
    allowed[assigned, choice[assigned].astype(np.int64)] = True
    dual = maximise_dual(tables.allowing(allowed), plan)
    return dual.price if dual.feasible else None


def within_gap(tables: Tables, dual: Dual, incumbent: Incumbent | None) -> Bools:
    """Return ``allowed`` without the candidates whose reduced cost exceeds the gap.

    A group without pairs that takes candidate c raises D(λ) by c's reduced cost.
    """
    if incumbent is None:
        return tables.allowed
    reduced = _reduced(tables, dual.price)
    rise = reduced - reduced.min(axis=1, keepdims=True)
    scale = np.abs(dual.price) @ (np.abs(tables.cost).max(axis=2).sum(axis=1) + tables.limit)
    rounding = ROUNDING * (abs(incumbent.loss) + abs(dual.bound) + abs(float(scale)))
    keep = dual.bound + rise <= incumbent.loss + rounding
    keep[tables.paired()] = True
    return tables.allowed & keep


def _open_singles(tables: Tables, price: Floats) -> list[int]:
    """Return the undecided groups without pairs, those with most at stake first."""
    stake = np.where(tables.allowed, np.tensordot(price, tables.cost, axes=1), 0.0)
    spread = np.ptp(stake, axis=1)
    undecided = tables.allowed.sum(axis=1) > 1
    undecided[tables.paired()] = False
    return sorted(np.flatnonzero(undecided).tolist(), key=lambda g: -spread[g])


def _reduced(tables: Tables, price: Floats) -> Floats:
    terms = tables.loss + np.tensordot(price, tables.cost, axes=1)
    return np.where(tables.allowed, terms, np.inf)

"""Optimise: the Lagrangian bound, a reduced core, and a search that widens until it is complete."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mpq_compile.solve.answer import Proof
from mpq_compile.solve.dominance import drop_dominated
from mpq_compile.solve.elimination import Elimination, plan_elimination
from mpq_compile.solve.lagrangian import Dual, maximise_dual
from mpq_compile.solve.lattice import best_lift, lattices
from mpq_compile.solve.moves import first_incumbent
from mpq_compile.solve.order import order_paired
from mpq_compile.solve.problem import relative_gap
from mpq_compile.solve.reduction import Core, compress, reduced_costs, within_gap
from mpq_compile.solve.search import Cuts, Outcome, Search
from mpq_compile.solve.tables import ROUNDING, Bools, Floats, Incumbent, Ints, Tables

# Each pass is a beam; the next is wider, and starts from a better incumbent and a smaller problem.
BEAMS = (256, 2048, 16384, 131072)
# After the widest beam the rest is searched depth first, in chunks of this many states.
CHUNK = 8192
# Multiples of the best multipliers: bounds for states that have spent too little or too much.
STRETCHES = (0.5, 0.8, 0.9, 1.1, 1.25, 2.0)
MAX_CUTS = 48
SAMPLED_LAYERS = 6
# Up to this many bits of choice left by the reduction, all of equal loss are told apart.
TIES = 20
# Neighbourhoods: groups, states in a layer, and how many in a row may find nothing better.
NEIGHBOURHOOD = 16
NEIGHBOURHOOD_WIDTH = 400
IDLE = 3


def optimise(
    tables: Tables, *, deadline: float, gap: float = 0.0, first_only: bool = False
) -> Proof:
    """Search ``tables`` for the least loss, or for anything that fits with ``first_only``.

    ``gap`` is the relative gap at which to stop.
    """
    plan = plan_elimination(tables, order_paired(tables))
    dual = maximise_dual(tables, plan)
    if not dual.feasible:
        return Proof(incumbent=None, bound=np.inf, dual=dual, states=0, complete=True)
    bound = best_lift(tables, dual)
    incumbent = first_incumbent(tables, dual, least=bound)
    proof = Proof(
        incumbent=incumbent, bound=bound, dual=dual, states=0, complete=False, proved=bound
    )
    if first_only and incumbent is not None:
        return proof
    return _Widening(tables, proof, deadline, gap, first_only).run()


class _Widening:
    """Passes over the core that is left, wider and wider; holds what is known so far."""

    def __init__(
        self, tables: Tables, proof: Proof, deadline: float, gap: float, first_only: bool
    ) -> None:
        self.tables, self.proof = tables, proof
        self.deadline, self.gap, self.first_only = deadline, gap, first_only
        self.cuts = _first_cuts(tables, proof.dual)
        whole = [x for x in lattices(tables, proof.dual.price) if not x.weight.any()]
        self.lattice = whole[0] if whole else None
        self.ties = True
        self.ties = _combinations(self._core()) <= TIES

    def run(self) -> Proof:
        incumbent, large = self.proof.incumbent, not self.ties and not self.tables.pairs
        if large and incumbent is not None and len(self._core().groups) > 2 * NEIGHBOURHOOD:
            self._explore_neighbourhoods(incumbent)
        for width, complete in _passes():
            if self._done() or (self.proof.states and time.perf_counter() > self.deadline):
                break
            core = self._core()
            # Without an answer the first beam, so narrow that it ends, has what time it needs.
            end = np.inf if self.proof.incumbent is None and width == BEAMS[0] else self.deadline
            search, outcome = self._search(core, width, complete, end)
            self._learn(core, outcome)
            if self.proof.complete or (self.first_only and self.proof.incumbent is not None):
                break
            if width > BEAMS[0]:
                self.cuts = _more_cuts(self.cuts, search)
        return self.proof

    def _explore_neighbourhoods(self, best: Incumbent) -> None:
        """Search around the best answer, in few groups at a time, while that finds better ones.

        First the groups with a candidate of least reduced cost, then as many at random.
        """
        draw = np.random.default_rng(0)
        idle = 0
        while idle < IDLE and not self._done() and time.perf_counter() < self.deadline:
            core = self._neighbourhood(best, draw, at_random=idle > 0)
            _, outcome = self._search(core, NEIGHBOURHOOD_WIDTH, False, self.deadline)
            self._learn(core, replace(outcome, open_bound=-np.inf))
            assert self.proof.incumbent is not None
            idle = 0 if self.proof.incumbent.loss < best.loss else idle + 1
            best = self.proof.incumbent

    def _neighbourhood(
        self, best: Incumbent, draw: np.random.Generator, *, at_random: bool
    ) -> Core:
        """Return the core in which only some groups may leave the best answer's candidates."""
        rows = np.arange(len(best.choice))
        kept = self._kept()
        kept[rows, best.choice] = True
        rise = reduced_costs(self.tables, self.proof.dual.price)
        rise -= rise[rows, best.choice][:, None]
        rise[~kept] = np.inf
        rise[rows, best.choice] = np.inf
        near = np.flatnonzero(kept.sum(axis=1) > 1)
        # Equal ones in any order: groups that are alike by number may be alike otherwise too.
        near = near[np.lexsort((draw.permutation(len(near)), rise[near].min(axis=1)))]
        if at_random:
            ranks = NEIGHBOURHOOD + np.arange(len(near))
            near = near[np.argsort(draw.exponential(size=len(near)) * ranks)]
        near = near[:NEIGHBOURHOOD]
        allowed = np.zeros_like(kept)
        allowed[rows, best.choice] = True
        allowed[near] = kept[near]
        core = compress(self.tables.allowing(allowed))
        return replace(core, tables=core.tables.allowing(drop_dominated(core.tables)))

    def _done(self) -> bool:
        """Tell whether the bound is met; where ties matter, only a whole search says which."""
        proof = self.proof
        if proof.incumbent is None:
            return False
        loss = proof.incumbent.loss
        if not self.ties and loss <= proof.bound + ROUNDING * abs(loss):
            self.proof = replace(proof, complete=True)
            return True
        return self.gap > 0 and relative_gap(loss, proof.bound) <= self.gap

    def _kept(self) -> Bools:
        """(G, C) candidates that a better answer, or where ties matter an equal one, may take."""
        step = 0.0 if self.ties or self.lattice is None else self.lattice.step
        return within_gap(self.tables, self.proof.dual, self.proof.incumbent, step)

    def _core(self) -> Core:
        core = compress(self.tables.allowing(self._kept()))
        return replace(core, tables=core.tables.allowing(drop_dominated(core.tables)))

    def _search(self, core: Core, width: int, complete: bool, end: float) -> tuple[Search, Outcome]:
        step = self.lattice.step if self.lattice else 0.0
        search = Search(
            core.tables,
            plan_elimination(core.tables, order_paired(core.tables)),
            self.cuts,
            _open_singles(core.tables, self.proof.dual.price),
            incumbent=_narrowed(core, self.proof.incumbent),
            width=width,
            complete=complete,
            deadline=end,
            first_only=self.first_only,
            step=None if self.ties else step,
        )
        return search, search.run()

    def _learn(self, core: Core, outcome: Outcome) -> None:
        old, found = self.proof.incumbent, outcome.incumbent
        if found is not None and len(found.choice):
            old = Incumbent(choice=core.expand(found.choice), loss=found.loss)
        bound = outcome.open_bound
        if self.lattice and np.isfinite(bound):
            bound = self.lattice.above(bound, ROUNDING * abs(bound))
        self.proof = replace(
            self.proof,
            incumbent=old,
            bound=max(self.proof.bound, min(bound, old.loss if old else np.inf)),
            states=self.proof.states + outcome.states,
            complete=outcome.open_bound == np.inf,
        )


def _combinations(core: Core) -> float:
    """Return the log2 of the number of assignments that a core leaves."""
    return float(np.log2(core.tables.allowed.sum(axis=1)).sum())


def _narrowed(core: Core, incumbent: Incumbent | None) -> Incumbent | None:
    """Return the incumbent as the core's, without its choice where the core leaves it out."""
    if incumbent is None:
        return None
    choice = core.narrow(incumbent.choice)
    return Incumbent(
        choice=np.zeros(0, np.int64) if choice is None else choice, loss=incumbent.loss
    )


def _passes() -> Iterator[tuple[int, bool]]:
    """Yield width and whether to come back to what is beyond it."""
    for width in BEAMS:
        yield width, False
    yield CHUNK, True


def _first_cuts(tables: Tables, dual: Dual) -> Cuts:
    axes = len(tables.axes)
    stretches = (1.0, *STRETCHES) if dual.price.any() else (1.0,)
    bounds = np.outer(stretches, dual.price)
    return Cuts(
        weight=np.append(np.ones(len(bounds)), np.zeros(axes)),
        price=np.concatenate([bounds, np.eye(axes)]),
    )


def _more_cuts(cuts: Cuts, search: Search) -> Cuts:
    """Add the best multipliers of what is left at states of least bound in several layers."""
    layers, tables, plan = search.samples, search.tables, search.plan
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


def _open_singles(tables: Tables, price: Floats) -> list[int]:
    """Return the undecided groups without pairs, those with most at stake first."""
    stake = np.where(tables.allowed, np.tensordot(price, tables.cost, axes=1), 0.0)
    spread = np.ptp(stake, axis=1)
    undecided = tables.allowed.sum(axis=1) > 1
    undecided[tables.paired()] = False
    return sorted(np.flatnonzero(undecided).tolist(), key=lambda g: -spread[g])

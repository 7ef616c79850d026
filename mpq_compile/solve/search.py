"""Search over partial assignments, layer by layer, with bounds and dominance.

A state is an assignment of the first k groups of the order, with its loss and usage. Of two
states with the same open classes (those that pair terms with later groups can see), one with no
less loss and no less usage on any axis is dropped. A state is dropped too where a Lagrangian
bound of what is left (see :mod:`elimination`) exceeds the best known loss, or shows that no
completion fits. Without truncation this is the dynamic program over non-dominated states (Dyer,
Riha & Walker 1995) on a path decomposition of the pair graph; with ``width`` it is a beam.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.dominance import surviving_states
from mpq_compile.solve.elimination import Elimination, Messages, eliminate
from mpq_compile.solve.tables import ROUNDING, Bools, Floats, Incumbent, Ints, Tables

# States of least bound kept from each layer that was too wide: they show which cuts are missing.
SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Front:
    """N states of one layer: choice (N, G), loss (N,), usage (N, D), bound (N,)."""

    choice: Ints
    loss: Floats
    usage: Floats
    bound: Floats

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, index: Ints | np.ndarray) -> Front:
        """Return the states at ``index``."""
        return Front(
            choice=self.choice[index],
            loss=self.loss[index],
            usage=self.usage[index],
            bound=self.bound[index],
        )


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Weights (L,) and multipliers (L, D) of the bounds; weight 0 tests feasibility only."""

    weight: Floats
    price: Floats


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search found.

    Attributes:
        incumbent: None where nothing that fits was found.
        open_bound: Least bound of what was left unexplored, infinite if nothing was.
        states: Number of states expanded.
    """

    incumbent: Incumbent | None
    open_bound: float
    states: int


class Search:
    """One pass over the layers; holds the incumbent while it improves.

    Args:
        singles: Groups without pairs that are still open; they are assigned first.
        width: Number of states kept in a layer.
        complete: Come back to the states beyond ``width`` later instead of dropping them.
        deadline: Value of ``time.perf_counter`` at which to stop.
        first_only: Stop at the first assignment that fits.
        step: None to look for equal losses too, of which the first by candidate order is kept;
            else by how much a loss must be lower to be looked for, 0 for what rounding leaves.
    """

    def __init__(
        self,
        tables: Tables,
        plan: Elimination,
        cuts: Cuts,
        singles: Sequence[int],
        *,
        incumbent: Incumbent | None,
        width: int,
        complete: bool,
        deadline: float,
        first_only: bool = False,
        step: float | None = None,
    ) -> None:
        self.tables, self.plan, self.cuts = tables, plan, cuts
        self.layers = [*singles, *plan.order]
        self.start = len(singles)
        self.incumbent = incumbent
        self.width, self.complete, self.deadline = width, complete, deadline
        self.first_only, self.step = first_only, step
        self.open_bound = np.inf
        self.states = 0
        self.samples: list[tuple[int, Front]] = []
        self.messages: Messages = eliminate(tables, plan, cuts.weight, cuts.price)
        self.constant = self._constants()
        self.magnitude = tables.scale
        self.tolerance = self._tolerance()

    def run(self) -> Outcome:
        """Explore until nothing is left, the time is over or, in a beam, the last layer."""
        stack = [(0, self._root())]
        while stack:
            depth, front = stack.pop()
            front = front.take(front.bound <= self._cutoff())
            while len(front) and depth < len(self.layers):
                if self._stopped():
                    stack.append((depth, front))
                    return self._outcome(stack)
                front = self._expand(front, depth)
                depth += 1
                front, rest = self._split(front, depth)
                if len(rest) and self.complete:
                    stack.append((depth, rest))
                elif len(rest):
                    self.open_bound = min(self.open_bound, float(rest.bound.min()))
            self._finish(front)
        return self._outcome([])

    def _outcome(self, stack: list[tuple[int, Front]]) -> Outcome:
        bounds = [float(front.bound.min()) for _, front in stack if len(front)]
        return Outcome(
            incumbent=self.incumbent,
            open_bound=min([self.open_bound, *bounds]),
            states=self.states,
        )

    def _stopped(self) -> bool:
        found = self.first_only and self.incumbent is not None
        return found or time.perf_counter() > self.deadline

    def _root(self) -> Front:
        """Return the state in which only the groups with one allowed candidate are assigned."""
        tables = self.tables
        choice = tables.allowed.argmax(axis=1)
        fixed = np.ones(len(choice), dtype=bool)
        fixed[self.layers] = False
        choice[~fixed] = 0
        rows = np.flatnonzero(fixed)
        dtype = np.uint8 if tables.loss.shape[1] <= 256 else np.dtype(">u2")
        return Front(
            choice=choice[None].astype(dtype),
            loss=np.array([tables.loss[rows, choice[rows]].sum()]),
            usage=tables.cost[:, rows, choice[rows]].sum(axis=1)[None],
            bound=np.array([-np.inf]),
        )

    def _constants(self) -> Floats:
        """(L, layers + 1): for each depth the part of the bound that no open group changes."""
        singles = self.messages.reduced[:, self.layers[: self.start]].min(axis=2)
        rest = np.zeros((len(self.cuts.weight), len(self.layers) + 1))
        rest[:, self.start :] = self.messages.constant
        tail = np.cumsum(singles[:, ::-1], axis=1)[:, ::-1]
        rest[:, : self.start] = tail + self.messages.constant[:, :1]
        return rest

    def _tolerance(self) -> float:
        """Return by how much two equal losses may differ through rounding."""
        if self.incumbent is None:
            return 0.0
        rows = np.arange(len(self.incumbent.choice))
        losses = np.abs(self.tables.loss[rows, self.incumbent.choice]).sum()
        prices = self.cuts.price[self.cuts.weight > 0]
        paid = float((prices @ self.magnitude).min()) if len(prices) else 0.0
        return ROUNDING * (float(losses) + abs(self.incumbent.loss) + paid)

    def _cutoff(self) -> float:
        if self.incumbent is None:
            return np.inf
        if self.step is None:
            return self.incumbent.loss + self.tolerance
        return self.incumbent.loss + self.tolerance - max(self.step, 2 * self.tolerance)

    def _expand(self, front: Front, depth: int) -> Front:
        """Assign one more group in all ways that the bounds leave open."""
        tables, group = self.tables, self.layers[depth]
        candidates = np.flatnonzero(tables.allowed[group])
        self.states += len(front)
        parent = np.repeat(np.arange(len(front)), len(candidates))
        picked = np.tile(candidates, len(front))
        loss = front.loss[parent] + tables.loss[group, picked]
        usage = front.usage[parent] + tables.cost[:, group, picked].T
        classes = tables.classes[group, picked]
        for i in self.plan.earlier.get(group, []):
            pair = self.plan.oriented[i]
            other = tables.classes[pair.a, front.choice[:, pair.a]][parent]
            loss += pair.loss[other, classes]
            loss[pair.forbidden[other, classes]] = np.inf
            usage += pair.cost[:, other, classes].T
        keep, bound = self._bound(front, depth + 1, parent, group, classes, loss, usage)
        choice = front.choice[parent[keep]]
        choice[:, group] = picked[keep]
        grown = Front(choice=choice, loss=loss[keep], usage=usage[keep], bound=bound)
        return self._undominated(grown, depth + 1)

    def _bound(
        self,
        front: Front,
        depth: int,
        parent: Ints,
        group: int,
        classes: Ints,
        loss: Floats,
        usage: Floats,
    ) -> tuple[Ints, Floats]:
        """Return which states survive every cut, and the best bound of each."""
        value = np.multiply.outer(self.cuts.weight, np.where(np.isfinite(loss), loss, 0.0))
        value += self.cuts.price @ usage.T
        value += self.constant[:, depth, None]
        for b in self._open(depth):
            index = np.zeros(len(loss), dtype=np.int64)
            for v in self.plan.buckets[b].scope:
                seen = classes if v == group else self.tables.classes[v, front.choice[:, v]][parent]
                index = index * int(self.tables.class_count[v]) + seen
            value += self.messages.functions[b].reshape(len(value), -1)[:, index]
        spent = self.cuts.price @ self.tables.limit
        rounding = ROUNDING * (self.cuts.price @ self.magnitude)
        tests = self.cuts.weight == 0
        alive = np.isfinite(loss)
        alive &= (value[tests] <= (spent + rounding)[tests, None]).all(axis=0)
        bounds = value[~tests] - spent[~tests, None]
        best = bounds.max(axis=0) if len(bounds) else np.full(len(loss), -np.inf)
        keep = np.flatnonzero(alive & (best <= self._cutoff()))
        return keep, best[keep]

    def _open(self, depth: int) -> list[int]:
        alive = self.plan.alive[max(0, depth - self.start)]
        return [b for b in alive if self.plan.buckets[b].scope]

    def _undominated(self, front: Front, depth: int) -> Front:
        if len(front) < 2:
            return front
        key, ties = self._key(front, depth), self.step is None
        return front.take(surviving_states(front, key, self.tolerance, ties=ties))

    def _key(self, front: Front, depth: int) -> Ints | None:
        """Number the open classes of each state; None where no two can be compared cheaply."""
        seen = sorted({v for b in self._open(depth) for v in self.plan.buckets[b].scope})
        key = np.zeros(len(front), dtype=np.int64)
        if np.prod([float(self.tables.class_count[v]) for v in seen]) > 2.0**60:
            return None
        for v in seen:
            key *= self.tables.class_count[v]
            key += self.tables.classes[v, front.choice[:, v]]
        return key

    def _split(self, front: Front, depth: int) -> tuple[Front, Front]:
        if len(front) <= self.width:
            return front, front.take(np.zeros(0, dtype=np.int64))
        order = np.argsort(front.bound, kind="stable")
        self.samples.append((depth, front.take(order[:SAMPLES])))
        return front.take(order[: self.width]), front.take(order[self.width :])

    def _finish(self, front: Front) -> None:
        """Keep the best complete state that fits; of equal ones the first by candidate order."""
        margin = ROUNDING * self.magnitude
        front = front.take(np.all(front.usage <= self.tables.limit + margin, axis=1))
        sure: Bools = np.all(front.usage <= self.tables.limit - margin, axis=1)
        order = np.argsort(front.loss, kind="stable").tolist()
        best = next((i for i in order if sure[i] or self._fits(front, i)), None)
        if best is None:
            return
        tied = np.flatnonzero(front.loss <= front.loss[best] + self.tolerance).tolist()
        tied.sort(key=lambda i: front.choice[i].tobytes())
        first = next(i for i in tied if sure[i] or self._fits(front, i))
        choice = front.choice[first].astype(np.int64)
        found = Incumbent(choice=choice, loss=float(front.loss[first]))
        if self.incumbent is None or _better(found, self.incumbent, self.tolerance):
            self.incumbent = found
            self.tolerance = self._tolerance()

    def _fits(self, front: Front, i: int) -> bool:
        return self.tables.fits(front.choice[i].astype(np.int64))


def _better(one: Incumbent, other: Incumbent, tolerance: float) -> bool:
    if one.loss < other.loss - tolerance:
        return True
    return one.loss <= other.loss + tolerance and tuple(one.choice) < tuple(other.choice)

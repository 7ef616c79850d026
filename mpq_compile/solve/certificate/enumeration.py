"""Enumerate the core again: is there an assignment within the budget with at most a given loss?

Candidates go whose reduced cost alone lifts the bound above that loss. What is left is assigned
group by group. A partial assignment is dropped where some multiplier's bound on all that complete
it is above the loss, or above what the budget leaves; and where another one, with the same labels
towards the groups that follow, has no more loss and no more usage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.certificate.bound import Step, singles, tables
from mpq_compile.solve.certificate.terms import Floats, Ints, Terms

# Partial assignments at once, and in all, that are enumerated at most.
AT_ONCE, IN_ALL = 200_000, 3_000_000
# Multiples of the multipliers: bounds for what has spent more or less than its share.
STRETCHES = (1.0, 0.5, 0.8, 0.9, 1.1, 1.25, 2.0)
# Under several budgets a partial assignment is compared with this many before it.
COMPARED = 16


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A bound weight·loss + price·(usage − limit) on completions; weight 0 asks for fitting only.

    ``least``: (G,) minimum of each group alone; ``tables`` of the paired ones, as eliminated.
    """

    weight: float
    price: Floats
    least: Floats
    tables: dict[int, Floats]


@dataclass(frozen=True, kw_only=True)
class Partial:
    """N partial assignments: loss (N,), usage (N, D), and the labels (N,) still needed.

    ``pending`` (K, N) is, for each cut, the least that the groups left can add.
    """

    loss: Floats
    usage: Floats
    pending: Floats
    labels: dict[int, Ints]

    def take(self, index: Ints) -> Partial:
        """Return the partial assignments at ``index``."""
        return Partial(
            loss=self.loss[index],
            usage=self.usage[index],
            pending=self.pending[:, index],
            labels={g: values[index] for g, values in self.labels.items()},
        )


def exists(terms: Terms, steps: list[Step], prices: list[Floats], target: float) -> bool | None:
    """Return whether an assignment within the budget has at most the loss ``target``.

    ``prices`` are multipliers, (D,) each. With an infinite target, whether anything fits. None
    where that is too much to enumerate.
    """
    kept = _kept(terms, steps, prices, target)
    if not kept.any(axis=1).all():
        return False
    enumeration = _Enumeration(terms, steps, _cuts(terms, steps, prices, target), kept, target)
    return enumeration.run()


def _cuts(terms: Terms, steps: list[Step], prices: list[Floats], target: float) -> list[Cut]:
    bounds = [s * p for p in prices for s in STRETCHES] if np.isfinite(target) else []
    rays = [*prices, *np.eye(len(terms.axes))]
    weighed = [(1.0, p) for p in bounds] + [(0.0, p) for p in rays if p.any()]
    return [
        Cut(
            weight=w,
            price=p,
            least=singles(terms, w, p).min(axis=1),
            tables=tables(terms, steps, w, p),
        )
        for w, p in weighed
    ]


def _rounding(terms: Terms, cut_price: Floats, target: float) -> float:
    size = float(cut_price @ terms.scale)
    return 1e-12 * (size + (abs(target) if np.isfinite(target) else 0.0))


def _kept(terms: Terms, steps: list[Step], prices: list[Floats], target: float) -> np.ndarray:
    """(G, C) candidates that no reduced cost excludes; those of paired groups all stay."""
    kept = np.isfinite(terms.loss)
    if not np.isfinite(target):
        return kept
    for price in prices:
        alone = singles(terms, 1.0, price)
        low = alone.min(axis=1)
        left = tables(terms, steps, 1.0, price)
        roots = sum(float(left[s.group]) for s in steps if s.parent < 0)
        bound = np.delete(low, terms.paired).sum() + roots - price @ terms.limit
        fine = bound + alone - low[:, None] <= target + _rounding(terms, price, target)
        fine[terms.paired] = True
        kept &= fine
    return kept


class _Enumeration:
    def __init__(
        self, terms: Terms, steps: list[Step], cuts: list[Cut], kept: np.ndarray, target: float
    ) -> None:
        self.terms, self.cuts, self.kept, self.target = terms, cuts, kept, target
        self.steps = {s.group: s for s in steps}
        self.children: dict[int, list[Step]] = {}
        for step in steps:
            self.children.setdefault(step.parent, []).append(step)
        self.order = [*self._undecided(), *(s.group for s in reversed(steps))]
        price = np.stack([c.price for c in cuts]) if cuts else np.zeros((0, len(terms.axes)))
        self.price = price
        self.weight = np.array([c.weight for c in cuts])
        cap = np.where(self.weight > 0, target, 0.0)
        self.cap = cap + price @ terms.limit + [_rounding(terms, p, target) for p in price]

    def run(self) -> bool | None:
        """Assign one group after another; see :func:`exists`."""
        front, seen = self._root(), 0
        if np.isinf(front.pending).any():
            return False  # pairs forbid every assignment
        for place, group in enumerate(self.order):
            front = self._grow(front, group)
            front = self._undominated(self._forget(front, self.order[place + 1 :]))
            seen += len(front.loss)
            if not len(front.loss):
                return False
            if len(front.loss) > AT_ONCE or seen > IN_ALL:
                return None
        within = np.all(front.usage <= self.terms.limit, axis=1) & (front.loss <= self.target)
        return bool(within.any())

    def _undecided(self) -> list[int]:
        """Return the groups without pairs that have a choice, those with most at stake first."""
        open_ = self.kept.sum(axis=1) > 1
        open_[self.terms.paired] = False
        groups = np.flatnonzero(open_)
        price = self.cuts[0].price if self.cuts else np.zeros(len(self.terms.axes))
        paid = np.tensordot(price, self.terms.cost[:, groups], axes=1)
        high = np.where(self.kept[groups], paid, -np.inf).max(axis=1)
        low = np.where(self.kept[groups], paid, np.inf).min(axis=1)
        return groups[np.argsort(low - high, kind="stable")].tolist()

    def _root(self) -> Partial:
        """Return the assignment of the decided groups alone."""
        terms = self.terms
        decided = np.setdiff1d(np.arange(len(terms.loss)), self.order)
        chosen = self.kept[decided].argmax(axis=1)
        open_ = [g for g in self.order if g not in self.steps]
        roots = [s.group for s in self.children.get(-1, ())]
        pending = [
            cut.least[open_].sum() + sum(float(cut.tables[g]) for g in roots) for cut in self.cuts
        ]
        return Partial(
            loss=terms.loss[decided, chosen].sum()[None],
            usage=terms.cost[:, decided, chosen].sum(axis=1)[None],
            pending=np.array(pending).reshape(-1, 1),
            labels={},
        )

    def _grow(self, front: Partial, group: int) -> Partial:
        """Assign ``group`` in all ways that no cut excludes."""
        terms = self.terms
        options = np.flatnonzero(self.kept[group])
        parent = np.repeat(np.arange(len(front.loss)), len(options))
        chosen = np.tile(options, len(front.loss))
        label = terms.label[group, chosen]
        loss = front.loss[parent] + terms.loss[group, chosen]
        usage = front.usage[parent] + terms.cost[:, group, chosen].T
        labels = {g: values[parent] for g, values in front.labels.items()} | {group: label}
        for other in front.labels:
            if (other, group) in terms.edges:
                edge = terms.edges[other, group]
                loss = loss + edge.loss[labels[other], label]
                usage = usage + edge.cost[:, labels[other], label].T
        pending = front.pending[:, parent] + self._change(group, labels, len(parent))
        there = np.isfinite(loss)
        value = np.outer(self.weight, np.where(there, loss, 0.0)) + self.price @ usage.T + pending
        keep = np.flatnonzero(there & np.all(value <= self.cap[:, None], axis=0))
        grown = Partial(loss=loss, usage=usage, pending=pending, labels=labels)
        return grown.take(keep)

    def _change(self, group: int, labels: dict[int, Ints], count: int) -> Floats:
        """(K, N) by how much less is pending once ``group`` has a label."""
        change = np.zeros((len(self.cuts), count))
        step = self.steps.get(group)
        for k, cut in enumerate(self.cuts):
            if step is None:
                change[k] = -cut.least[group]
                continue
            change[k] -= cut.tables[group][tuple(labels[v] for v in step.scope)]
            for child in self.children.get(group, ()):
                change[k] += cut.tables[child.group][tuple(labels[v] for v in child.scope)]
        return change

    def _forget(self, front: Partial, rest: list[int]) -> Partial:
        """Leave out the labels that no group of ``rest`` has to do with."""
        needed = {v for g in rest if g in self.steps for v in self.steps[g].scope}
        labels = {g: values for g, values in front.labels.items() if g in needed}
        return Partial(loss=front.loss, usage=front.usage, pending=front.pending, labels=labels)

    def _undominated(self, front: Partial) -> Partial:
        key = np.zeros(len(front.loss), dtype=np.int64)
        for g, values in front.labels.items():
            key = key * int(self.terms.labels[g]) + values
        first = front.usage[:, 0] if front.usage.shape[1] else np.zeros(len(key))
        order = np.lexsort((front.loss, first, key))
        key, loss, usage = key[order], front.loss[order], front.usage[order]
        if front.usage.shape[1] < 2:
            return front.take(order[_steps_down(key, loss)])
        beaten = np.zeros(len(key), dtype=bool)
        for shift in range(1, min(COMPARED, len(key) - 1) + 1):
            beats = (key[:-shift] == key[shift:]) & (loss[:-shift] <= loss[shift:])
            beaten[shift:] |= beats & np.all(usage[:-shift] <= usage[shift:], axis=1)
        return front.take(order[~beaten])


def _steps_down(key: Ints, loss: Floats) -> np.ndarray:
    """Tell where the loss is below all before it of the same key, in order of usage."""
    rank = np.unique(loss, return_inverse=True)[1].ravel()
    # Every key starts below all ranks of the key before it: one running minimum serves all.
    fallen = rank - np.cumsum(np.diff(key, prepend=key[:1]) != 0) * (len(loss) + 1)
    return np.append(True, fallen[1:] < np.minimum.accumulate(fallen)[:-1])[: len(loss)]

"""Minimise the Lagrangian over all groups by eliminating them one by one.

    D(w, λ) = min_x  w·loss(x) + λ·usage(x)

Groups are taken in an order; seen from the last to the first, each is minimised out of the terms
that hold it, which leaves a function of groups that come before it (bucket elimination, Dechter
1999). Where such a function would have more than ``TABLE_LIMIT`` entries, the terms of a group are
split over several mini-buckets and minimised apart: what comes out is then a lower bound of D, the
exact minimum of a relaxed problem in which the group is copied (Dechter & Rish 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpq_compile.solve.tables import Floats, Ints, PairTable, Tables

TABLE_LIMIT = 2**13

# Scope, index, and whether it is a pair's table (else a bucket's function).
Input = tuple[tuple[int, ...], int, bool]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """One minimisation: ``group`` out of functions of ``scope`` (groups before it) and itself.

    ``pairs`` and ``children`` carry, for each input, the shape that aligns it with the axes
    (scope..., group). ``share`` is the part of the group's single terms that it takes.
    """

    group: int
    step: int
    scope: tuple[int, ...]
    share: float
    pairs: tuple[tuple[int, tuple[int, ...]], ...]
    children: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Elimination:
    """Order of the groups, and the buckets in the order of computation (last group first).

    Attributes:
        order: Groups in the order in which a search assigns them.
        parent_step: For each bucket the step of the bucket that takes its function, or −1.
        oriented: Pair tables whose rows are the group that comes first in ``order``.
    """

    order: tuple[int, ...]
    buckets: tuple[Bucket, ...]
    parent: tuple[int, ...]
    oriented: tuple[PairTable, ...]

    @cached_property
    def parent_step(self) -> tuple[int, ...]:
        """Step at which each bucket's function is taken up, or −1."""
        return tuple(-1 if p < 0 else self.buckets[p].step for p in self.parent)

    @cached_property
    def earlier(self) -> dict[int, list[int]]:
        """Return for each group the pairs with groups before it."""
        pairs: dict[int, list[int]] = {g: [] for g in self.order}
        for i, pair in enumerate(self.oriented):
            pairs[pair.b].append(i)
        return pairs

    @cached_property
    def alive(self) -> tuple[tuple[int, ...], ...]:
        """Return for each number of assigned groups the buckets whose functions are open."""
        return tuple(
            tuple(
                i for i, bucket in enumerate(self.buckets) if bucket.step >= k > self.parent_step[i]
            )
            for k in range(len(self.order) + 1)
        )

    @property
    def relaxed(self) -> bool:
        """True where a group is split, so that the minimum is only a bound."""
        return any(b.share < 1.0 for b in self.buckets)


def plan_elimination(tables: Tables, order: Sequence[int]) -> Elimination:
    """Plan the buckets for the groups of ``order``, which must hold every paired group."""
    step = {g: k for k, g in enumerate(order)}
    oriented = tuple(p if step[p.a] < step[p.b] else p.transposed() for p in tables.pairs)
    earlier: dict[int, list[int]] = {g: [] for g in order}
    for i, pair in enumerate(oriented):
        earlier[pair.b].append(i)
    buckets: list[Bucket] = []
    parent: list[int] = []
    pending: dict[int, list[int]] = {g: [] for g in order}
    for g in reversed(order):
        inputs: list[Input] = [((oriented[i].a, g), i, True) for i in earlier[g]]
        inputs += [(buckets[b].scope, b, False) for b in pending.pop(g)]
        for scope, members in (parts := _partition(inputs, g, tables.class_count)):
            ordered = tuple(sorted(scope, key=step.__getitem__))
            _append(tables, buckets, parent, g, step[g], ordered, members, 1.0 / len(parts))
            if ordered[:-1]:
                pending[ordered[-2]].append(len(buckets) - 1)
    return Elimination(
        order=tuple(order), buckets=tuple(buckets), parent=tuple(parent), oriented=oriented
    )


def _partition(inputs: list[Input], g: int, count: Ints) -> list[tuple[set[int], list[Input]]]:
    """Put functions together, widest first, while the joint table stays small."""
    parts: list[tuple[set[int], list[Input]]] = []
    for item in sorted(inputs, key=lambda item: -len(item[0])):
        for i, (scope, members) in enumerate(parts):
            joint = scope | set(item[0])
            if np.prod([float(count[v]) for v in joint]) <= TABLE_LIMIT:
                parts[i] = (joint, [*members, item])
                break
        else:
            parts.append(({g, *item[0]}, [item]))
    return parts or [({g}, [])]


def _append(
    tables: Tables,
    buckets: list[Bucket],
    parent: list[int],
    g: int,
    step: int,
    axes: tuple[int, ...],
    members: list[Input],
    share: float,
) -> None:
    shapes = [
        (i, tuple(int(tables.class_count[v]) if v in scope else 1 for v in axes), is_pair)
        for scope, i, is_pair in members
    ]
    for i, _, is_pair in shapes:
        if not is_pair:
            parent[i] = len(buckets)
    parent.append(-1)
    buckets.append(
        Bucket(
            group=g,
            step=step,
            scope=axes[:-1],
            share=share,
            pairs=tuple((i, shape) for i, shape, is_pair in shapes if is_pair),
            children=tuple((i, shape) for i, shape, is_pair in shapes if not is_pair),
        )
    )


@dataclass(frozen=True, kw_only=True)
class Messages:
    """The functions left by an elimination under L weights (w, λ) at once.

    Attributes:
        weight: (L,) weight of the loss, 1 for a bound and 0 for a test of feasibility.
        price: (L, D) multipliers λ.
        functions: For each bucket an array (L, classes of its scope...).
        joint: What each bucket minimised over, its group's classes last; for :func:`trace`, and
            so kept for a single weight only (L = 1).
        reduced: (L, G, C) single terms w·loss + λ·cost, infinite where not allowed.
    """

    plan: Elimination
    weight: Floats
    price: Floats
    functions: tuple[Floats, ...]
    joint: tuple[Floats, ...]
    reduced: Floats

    @cached_property
    def constant(self) -> Floats:
        """(L, steps + 1): sum of the open functions that depend on no group."""
        total = np.zeros((len(self.weight), len(self.plan.order) + 1))
        for k, alive in enumerate(self.plan.alive):
            for b in alive:
                if self.functions[b].ndim == 1:
                    total[:, k] += self.functions[b]
        return total

    @property
    def minimum(self) -> Floats:
        """(L,) the minimum (or its bound) over the groups of the plan."""
        return self.constant[:, 0]


def eliminate(tables: Tables, plan: Elimination, weight: Floats, price: Floats) -> Messages:
    """Run the plan for weights (L,) and multipliers (L, D)."""
    singles = weight[:, None, None] * tables.loss
    singles += np.tensordot(price, tables.cost, axes=1)
    reduced = np.where(tables.allowed, singles, np.inf)
    pairs = [_weigh(pair, weight, price) for pair in plan.oriented]
    functions: list[Floats] = []
    joints: list[Floats] = []
    for bucket in plan.buckets:
        g = bucket.group
        singly = _by_class(reduced[:, g], tables.classes[g], int(tables.class_count[g]))
        joint = (singly * bucket.share).reshape(-1, *[1] * len(bucket.scope), singly.shape[1])
        for i, shape in bucket.pairs:
            joint = joint + pairs[i].reshape(-1, *shape)
        for i, shape in bucket.children:
            joint = joint + functions[i].reshape(-1, *shape)
        joints.append(joint if len(weight) == 1 else joint[:0])
        functions.append(joint.min(axis=-1))
    return Messages(
        plan=plan,
        weight=weight,
        price=price,
        functions=tuple(functions),
        joint=tuple(joints),
        reduced=reduced,
    )


def _weigh(pair: PairTable, weight: Floats, price: Floats) -> Floats:
    terms = weight[:, None, None] * pair.loss + np.tensordot(price, pair.cost, axes=1)
    terms[:, pair.forbidden] = np.inf
    return terms


def _by_class(reduced: Floats, classes: Ints, count: int) -> Floats:
    if count == 1:
        return reduced.min(axis=1, keepdims=True)
    return np.stack(
        [reduced[:, classes == k].min(axis=1, initial=np.inf) for k in range(count)], axis=1
    )


def trace(tables: Tables, messages: Messages) -> tuple[Ints, float, Floats]:
    """Return a minimiser (for L = 1): choice (G,), loss and usage of the planned groups.

    Where groups are split, loss and usage are those of the relaxed minimiser, whose copies may
    disagree, and the choice takes the first copy; −1 stands where a group is not in the plan.
    """
    plan = messages.plan
    choice = np.full(len(tables.loss), -1, dtype=np.int64)
    loss, usage = 0.0, np.zeros(len(tables.axes))
    context: dict[int, dict[int, int]] = {}
    for b in range(len(plan.buckets) - 1, -1, -1):
        bucket, values = plan.buckets[b], dict(context.get(plan.parent[b], {}))
        g, known = bucket.group, tuple(values[v] for v in bucket.scope)
        k = int(np.argmin(messages.joint[b][(0, *known)]))
        members = np.where(tables.classes[g] == k, messages.reduced[0, g], np.inf)
        c = int(np.argmin(members))
        choice[g] = c if choice[g] < 0 else choice[g]
        values[g] = k
        context[b] = values
        loss += bucket.share * tables.loss[g, c]
        usage = usage + bucket.share * tables.cost[:, g, c]
        for i, _ in bucket.pairs:
            pair = plan.oriented[i]
            loss += pair.loss[values[pair.a], k]
            usage = usage + pair.cost[:, values[pair.a], k]
    return choice, float(loss), usage

"""Branch and bound over blocks, depth first: the children of least bound first.

A node has labels for some blocks. Their terms with the others fall on the others' labels, and
messages among what is left are improved from those of the node above. Each label of the block that
is branched on next is bounded by looking one step ahead; the last two blocks are enumerated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.block_dual import (
    BlockDual,
    Messages,
    Weighed,
    bound_of,
    pass_messages,
    rest,
    with_messages,
)
from mpq_compile.solve.blocks import Blocks
from mpq_compile.solve.tables import Floats, Incumbent, Tables

# Rounds of messages at a node.
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Node:
    """Labels for some blocks, and what they leave.

    Attributes:
        picked: Label by block.
        value: θ of the picked blocks, loss + λ·usage.
        loss, usage: Theirs alone; usage (D,).
        alone: θ of each other block's labels, with the terms towards the picked ones.
        open_loss, open_cost: The same for loss (n,) and cost (D, n).
        messages: Among the other blocks.
    """

    picked: dict[int, int]
    value: float
    loss: float
    usage: Floats
    alone: dict[int, Floats]
    open_loss: dict[int, Floats]
    open_cost: dict[int, Floats]
    messages: Messages


class BlockSearch:
    """The search; holds the incumbent while it improves.

    Args:
        step: By how much a loss must be lower to be looked for; 0 for what rounding leaves.
        gap: Relative gap to the incumbent at which a node is not explored.
    """

    def __init__(
        self,
        tables: Tables,
        blocks: Blocks,
        weighed: Weighed,
        dual: BlockDual,
        incumbent: Incumbent | None,
        *,
        step: float,
        gap: float,
        deadline: float,
    ) -> None:
        self.tables, self.blocks, self.weighed, self.dual = tables, blocks, weighed, dual
        self.incumbent, self.step, self.gap, self.deadline = incumbent, step, gap, deadline
        self.paid = float(dual.price @ tables.limit)
        sizes = [*blocks.loss, *blocks.pair_loss.values()]
        size = sum(float(np.abs(v[np.isfinite(v)]).max(initial=0.0)) for v in sizes)
        self.rounding = 1e-12 * (size + float(dual.price @ tables.scale))
        self.nodes = 0
        self.open_bound = np.inf

    def run(self) -> None:
        """Explore until nothing is left, or the time is over."""
        every = range(len(self.blocks.loss))
        self._explore(
            Node(
                picked={},
                value=0.0,
                loss=0.0,
                usage=np.zeros(len(self.tables.axes)),
                alone=dict(enumerate(self.weighed.alone)),
                open_loss=dict(zip(every, self.blocks.loss, strict=True)),
                open_cost=dict(zip(every, self.blocks.cost, strict=True)),
                messages=self.dual.messages,
            )
        )

    def _cutoff(self) -> float:
        """Return the bound from which on a node is not explored."""
        if self.incumbent is None:
            return np.inf
        loss = self.incumbent.loss
        return loss - max(self.step - self.rounding, self.gap * max(1.0, abs(loss)), self.rounding)

    def _explore(self, node: Node) -> None:
        self.nodes += 1
        if len(node.alone) <= 2:
            return self._finish(node)
        blocks = sorted(node.alone)
        messages = dict(node.messages)
        for _ in range(ROUNDS):
            pass_messages(node.alone, self.weighed, messages, blocks)
            bound = node.value - self.paid
            bound += bound_of(node.alone, self.weighed, messages, blocks)
            if bound >= self._cutoff():
                return self._leave(bound)
        self._branch(node, blocks, messages)

    def _branch(self, node: Node, blocks: list[int], messages: Messages) -> None:
        full = with_messages(node.alone, self.weighed, messages, blocks)
        # The block whose labels differ most prunes most.
        block = max(blocks, key=lambda k: float(full[k].mean() - full[k].min()))
        bounds = self._ahead(node, block, full, messages)
        fitting = np.flatnonzero(np.isfinite(node.open_loss[block]) & self._may_fit(node, block))
        ranked = fitting[np.argsort(bounds[fitting], kind="stable")].tolist()
        for label in ranked:
            if bounds[label] >= self._cutoff() or time.perf_counter() > self.deadline:
                return self._leave(float(bounds[label]))
            self._explore(self._child(node, block, label, messages))

    def _leave(self, bound: float) -> None:
        """Note the bound of what is not explored though its loss might be below the incumbent's."""
        known = np.inf if self.incumbent is None else self.incumbent.loss
        if bound < known - max(self.step - self.rounding, self.rounding):
            self.open_bound = min(self.open_bound, bound)

    def _ahead(self, node: Node, block: int, full: dict[int, Floats], messages: Messages) -> Floats:
        """(n,) the bound of each label of ``block``, its terms with the others being exact."""
        others = [k for k in full if k != block]
        bounds = node.alone[block] + (node.value - self.paid)
        for k in others:
            if (block, k) in self.weighed.joint:
                freed = full[k] - messages[k, block]
                bounds = bounds + (self.weighed.joint[block, k] + freed).min(axis=1)
            else:
                bounds = bounds + full[k].min()
            for m in self.weighed.neighbours(k, others):
                if k < m:
                    bounds = bounds + rest(self.weighed, messages, k, m).min()
        return bounds

    def _may_fit(self, node: Node, block: int) -> np.ndarray:
        """(n,) whether the least usage of all other blocks leaves room for each label."""
        least = node.usage - self.tables.limit
        for k, cost in node.open_cost.items():
            if k != block:
                least = least + cost.min(axis=1)
        for (k, m), cost in self.blocks.pair_cost.items():
            if k in node.alone and m in node.alone:
                least = least + cost.min(axis=(1, 2))
        room = node.open_cost[block] + least[:, None]
        return np.asarray((room <= 1e-12 * self.tables.scale[:, None]).all(axis=0))

    def _child(self, node: Node, block: int, label: int, messages: Messages) -> Node:
        alone, open_loss, open_cost = {}, {}, {}
        for k in node.alone:
            if k == block:
                continue
            alone[k], open_loss[k], open_cost[k] = self._given(node, block, label, k)
        return Node(
            picked={**node.picked, block: label},
            value=node.value + float(node.alone[block][label]),
            loss=node.loss + float(node.open_loss[block][label]),
            usage=node.usage + node.open_cost[block][:, label],
            alone=alone,
            open_loss=open_loss,
            open_cost=open_cost,
            messages=messages,
        )

    def _given(self, node: Node, block: int, label: int, k: int) -> tuple[Floats, Floats, Floats]:
        """Return θ, loss and cost of block k's labels once ``block`` has its label."""
        alone, loss, cost = node.alone[k], node.open_loss[k], node.open_cost[k]
        if (block, k) not in self.weighed.joint:
            return alone, loss, cost
        alone = alone + self.weighed.joint[block, k][label]
        return alone, loss + self._loss(block, k)[label], cost + self._cost(block, k)[:, label]

    def _loss(self, k: int, m: int) -> Floats:
        if k < m:
            return self.blocks.pair_loss[k, m]
        return self.blocks.pair_loss[m, k].T

    def _cost(self, k: int, m: int) -> Floats:
        """(D, n_k, n_m), or zeros that broadcast where pairs cost nothing."""
        key = (min(k, m), max(k, m))
        if key not in self.blocks.pair_cost:
            return np.zeros((len(self.tables.axes), len(self.blocks.loss[k]), 1))
        cost = self.blocks.pair_cost[key]
        return cost if k < m else cost.transpose(0, 2, 1)

    def _finish(self, node: Node) -> None:
        """Enumerate the last two blocks, or the only one."""
        first, *more = sorted(node.alone)
        loss = node.loss + node.open_loss[first]
        usage = node.usage[:, None] + node.open_cost[first]
        if more:
            (second,) = more
            loss = loss[:, None] + node.open_loss[second]
            usage = usage[:, :, None] + node.open_cost[second][:, None]
            if (first, second) in self.weighed.joint:
                loss = loss + self._loss(first, second)
                usage = usage + self._cost(first, second)
        limit = self.tables.limit.reshape(-1, *[1] * loss.ndim)
        fits = (usage <= limit * (1 + 1e-12 * np.sign(limit))).all(axis=0)
        known = np.inf if self.incumbent is None else self.incumbent.loss - self.rounding
        better = np.flatnonzero((fits & (loss < known)).ravel())
        for flat in better[np.argsort(loss.ravel()[better], kind="stable")].tolist():
            picked = np.unravel_index(flat, loss.shape)
            labels = dict(zip((first, *more), map(int, picked), strict=True))
            choice = self.blocks.choice({**node.picked, **labels})
            # Rounding may feign a fit: the sums are made anew, without it.
            if self.tables.fits(choice):
                self.incumbent = Incumbent(choice=choice, loss=self.tables.worth(choice)[0])
                return

"""A lower bound on a problem of blocks: messages between blocks, and multipliers of the budgets.

The terms between two blocks are split, by messages, between them and what stays:

    D(λ, m) = Σ_k min_x [θ_k(x) + Σ_l m_kl→k(x)]
              + Σ_kl min_xy [θ_kl(x, y) − m_kl→k(x) − m_kl→l(y)] − λ·limit

with θ = loss + λ·cost bounds every loss within the budget from below. Messages rise by sequential
tree-reweighted message passing (Kolmogorov 2006): a block takes all that its pairs can give, and
hands it on to those that come later. λ follows the supergradient, the usage of what is minimal
less the limit, by Polyak's step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.blocks import Blocks
from mpq_compile.solve.tables import Floats, Tables

# Rounds of messages at most, and without a new best bound before the end.
ROUNDS, IDLE = 150, 25
# Of the gap, what the step of the multipliers aims at; it shrinks where a bound gets worse.
AIM, SHRINK = 0.3, 0.9

Messages = dict[tuple[int, int], Floats]


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """θ for one λ, finite everywhere: what is forbidden costs more than anything else can.

    ``alone`` (n_k,) by block; ``joint`` (n_k, n_l) by blocks in both orders.
    """

    alone: Sequence[Floats]
    joint: Messages

    def neighbours(self, k: int, among: Sequence[int]) -> list[int]:
        """Return the blocks of ``among`` that a term joins with block k."""
        return [m for m in among if (k, m) in self.joint]


@dataclass(frozen=True, kw_only=True)
class BlockDual:
    """The best bound found, its multipliers (D,), and its messages by (to, from)."""

    bound: float
    price: Floats
    messages: Messages


def weigh(blocks: Blocks, price: Floats, huge: float) -> Weighed:
    """Return θ = loss + price·cost with ``huge`` instead of what is forbidden."""
    alone = [
        np.where(np.isinf(loss), huge, loss) + price @ cost
        for loss, cost in zip(blocks.loss, blocks.cost, strict=True)
    ]
    joint: Messages = {}
    for (k, m), loss in blocks.pair_loss.items():
        terms = np.where(np.isinf(loss), huge, loss)
        if (k, m) in blocks.pair_cost:
            terms = terms + np.tensordot(price, blocks.pair_cost[k, m], axes=1)
        joint[k, m], joint[m, k] = terms, np.ascontiguousarray(terms.T)
    return Weighed(alone=alone, joint=joint)


def huge_loss(blocks: Blocks) -> float:
    """Return a loss above what any allowed assignment can gain elsewhere."""
    parts = [*blocks.loss, *blocks.pair_loss.values()]
    finite = [part[np.isfinite(part)] for part in parts]
    return 1.0 + 2.0 * sum(float(np.abs(part).max(initial=0.0)) for part in finite)


def no_messages(weighed: Weighed) -> Messages:
    """Return messages of zero."""
    return {key: np.zeros(len(terms)) for key, terms in weighed.joint.items()}


def pass_messages(
    alone: dict[int, Floats], weighed: Weighed, messages: Messages, order: Sequence[int]
) -> None:
    """Update the messages among the blocks of ``order`` in place, there and back."""
    for sequence in (order, order[::-1]):
        place = {k: i for i, k in enumerate(sequence)}
        for k in sequence:
            near = weighed.neighbours(k, sequence)
            total = alone[k]
            for m in near:
                messages[k, m] = (weighed.joint[k, m] - messages[m, k]).min(axis=1)
                total = total + messages[k, m]
            later = [m for m in near if place[m] > place[k]]
            if later:
                part = total / max(len(later), len(near) - len(later))
                for m in later:
                    messages[k, m] = messages[k, m] - part


def with_messages(
    alone: dict[int, Floats], weighed: Weighed, messages: Messages, among: Sequence[int]
) -> dict[int, Floats]:
    """Return each block's terms with what its neighbours of ``among`` send."""
    return {k: alone[k] + sum(messages[k, m] for m in weighed.neighbours(k, among)) for k in among}


def rest(weighed: Weighed, messages: Messages, k: int, m: int) -> Floats:
    """(n_k, n_m): what the messages leave of the terms between two blocks."""
    left = weighed.joint[k, m] - messages[k, m][:, None]
    left -= messages[m, k]
    return left


def bound_of(
    alone: dict[int, Floats], weighed: Weighed, messages: Messages, among: Sequence[int]
) -> float:
    """Return the least value of the blocks of ``among`` that the messages prove."""
    total = sum(float(v.min()) for v in with_messages(alone, weighed, messages, among).values())
    joined = [(k, m) for k in among for m in weighed.neighbours(k, among) if k < m]
    return total + sum(float(rest(weighed, messages, k, m).min()) for k, m in joined)


def maximise_blocks(
    tables: Tables, blocks: Blocks, price: Floats, best_loss: float, *, deadline: float
) -> BlockDual:
    """Return the best bound found from the multipliers ``price`` on.

    Args:
        best_loss: The least loss known: where the bound meets it, nothing is left to do.
        deadline: Value of ``time.perf_counter`` at which to stop, after one round at least.
    """
    huge, every = huge_loss(blocks), range(len(blocks.loss))
    scale = np.where(tables.scale > 0, tables.scale, 1.0)
    weighed = weigh(blocks, price, huge)
    messages = no_messages(weighed)
    best = BlockDual(bound=-np.inf, price=price, messages=dict(messages))
    aim, idle = AIM, 0
    for _ in range(ROUNDS):
        alone = dict(enumerate(weighed.alone))
        pass_messages(alone, weighed, messages, every)
        bound = bound_of(alone, weighed, messages, every) - float(price @ tables.limit)
        if bound > best.bound:
            idle = 0 if bound > best.bound + 1e-5 * abs(bound) else idle + 1
            best = BlockDual(bound=bound, price=price, messages=dict(messages))
        else:
            aim, idle = aim * SHRINK, idle + 1
        if idle > IDLE or best.bound >= best_loss or time.perf_counter() > deadline:
            break
        if not len(price):
            continue
        usage = _usage(blocks, weighed, messages, alone)
        slope = (usage - tables.limit) / scale
        gap = best_loss - bound if np.isfinite(best_loss) else 0.1 * abs(bound) + 1e-9
        step = aim * gap * slope / max(float(slope @ slope), 1e-30)
        price = np.maximum(0.0, price + step / scale)
        weighed = weigh(blocks, price, huge)
    return best


def _usage(
    blocks: Blocks, weighed: Weighed, messages: Messages, alone: dict[int, Floats]
) -> Floats:
    """(D,) the usage of what is minimal in each block and between them: a supergradient."""
    every = range(len(blocks.loss))
    full = with_messages(alone, weighed, messages, every)
    usage = sum(blocks.cost[k][:, int(full[k].argmin())] for k in every)
    for (k, m), cost in blocks.pair_cost.items():
        left = rest(weighed, messages, k, m)
        i, j = np.unravel_index(int(left.argmin()), left.shape)
        usage = usage + cost[:, i, j]
    return np.asarray(usage)

"""The bound of messages for a whole problem, and its certificate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpq_compile.solve.block_dual import BlockDual, maximise_blocks
from mpq_compile.solve.blocks import Blocks, build_blocks
from mpq_compile.solve.elimination import plan_elimination
from mpq_compile.solve.lagrangian import Dual, maximise_dual
from mpq_compile.solve.tables import Tables


@dataclass(frozen=True, kw_only=True)
class BlockBound:
    """Blocks, and what multipliers and messages prove of them."""

    blocks: Blocks
    best: BlockDual

    @property
    def dual(self) -> Dual:
        """The bound as other bounds are given."""
        price, bound = self.best.price, self.best.bound
        return Dual(feasible=True, price=price, bound=bound, columns=(), prices=())

    @property
    def certificate(self) -> dict[str, Any]:
        """The blocks, and the messages as ``[k, l, to k, to l]``, for the checker."""
        sent = self.best.messages
        return {
            "blocks": [list(members) for members in self.blocks.members],
            "messages": [
                [k, m, sent[k, m].tolist(), sent[m, k].tolist()] for k, m in self.blocks.pair_loss
            ],
        }


def without_pairs(tables: Tables) -> Dual:
    """Return the Lagrangian bound of the problem without its pairs: multipliers to start from."""
    plain = replace(tables, pairs=())
    dual = maximise_dual(plain, plan_elimination(plain, []))
    return dual if dual.feasible else replace(dual, price=np.zeros(len(tables.axes)))


def bound_blocks(tables: Tables, start: Dual, best_loss: float, *, deadline: float) -> BlockBound:
    """Return the bound of ``tables``, which hold all candidates, dominated ones too.

    Args:
        start: Whose multipliers come first.
        best_loss: The least loss known, infinite if none.
    """
    blocks = build_blocks(tables)
    best = maximise_blocks(tables, blocks, start.price, best_loss, deadline=deadline)
    return BlockBound(blocks=blocks, best=best)

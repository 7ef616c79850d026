"""Groups put together in blocks, so that a dense problem is one of few variables of many labels.

A block's label is a candidate for each of its groups. Terms between groups of one block become
terms of the label, and what is left is between blocks. The larger the blocks, the more of the
problem every bound sees exactly (the region graphs of Wainwright, Jaakkola & Willsky 2005 in their
simplest form).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mpq_compile.solve.tables import Floats, Ints, Tables

# Labels of a block, and entries of all tables between blocks, at most.
LABELS, ENTRIES = 256, 2**22

Pairs = Mapping[tuple[int, int], Floats]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """K blocks with n_k labels; terms are infinite where something is forbidden.

    Attributes:
        members: The groups of each block.
        labels: (n_k, members) the candidates of each label: all combinations, the last fastest.
        loss: (n_k,) by block.
        cost: (D, n_k) by block.
        pair_loss: (n_k, n_l) by blocks k < l, where there is any term between them.
        pair_cost: (D, n_k, n_l) by blocks k < l, where a pair between them costs anything.
    """

    members: tuple[tuple[int, ...], ...]
    labels: tuple[Ints, ...]
    loss: tuple[Floats, ...]
    cost: tuple[Floats, ...]
    pair_loss: Pairs
    pair_cost: Pairs

    def choice(self, picked: Mapping[int, int]) -> Ints:
        """Return the candidate of every group for a label of every block."""
        choice = np.zeros(sum(map(len, self.members)), dtype=np.int64)
        for k, label in picked.items():
            choice[list(self.members[k])] = self.labels[k][label]
        return choice


def build_blocks(tables: Tables) -> Blocks:
    """Put groups together that have much to do with each other, as many as the limits allow."""
    couplings = _couplings(tables)
    widest = int(math.log(LABELS) / math.log(max(2, tables.loss.shape[1])) + 1e-9)
    for size in range(max(1, widest), 0, -1):
        members = _members(couplings, size)
        counts = [math.prod(_sizes(tables)[g] for g in block) for block in members]
        if size == 1 or _entries(couplings, members, counts) <= ENTRIES:
            break
    return _assemble(tables, tuple(tuple(block) for block in members))


def _sizes(tables: Tables) -> list[int]:
    """Return how many candidates each group has, allowed or not."""
    last = tables.loss.shape[1] - tables.allowed[:, ::-1].argmax(axis=1)
    return last.tolist()


def _couplings(tables: Tables) -> Floats:
    """(G, G): how much the pair terms of two groups vary, each axis in its own scale."""
    spread = np.zeros((len(tables.loss),) * 2)
    size = max(float(np.ptp(tables.loss)), 1e-300)
    scale = np.where(tables.scale > 0, tables.scale, 1.0)
    for pair in tables.pairs:
        varied = np.ptp(pair.loss) / size + (np.ptp(pair.cost, axis=(1, 2)) / scale).sum()
        spread[pair.a, pair.b] = spread[pair.b, pair.a] = varied + pair.forbidden.any() + 1e-12
    return spread


def _members(couplings: Floats, size: int) -> list[list[int]]:
    """Fill one block after the other with the group most coupled to what is in it."""
    free = np.ones(len(couplings), dtype=bool)
    among_free = couplings.sum(axis=1)
    blocks: list[list[int]] = []
    while free.any():
        wanted, block = among_free, list[int]()
        while len(block) < size and free.any():
            g = int(np.where(free, wanted, -1.0).argmax())
            block.append(g)
            free[g] = False
            among_free = among_free - couplings[g]
            wanted = couplings[block].sum(axis=0)
        blocks.append(sorted(block))
    return blocks


def _entries(couplings: Floats, members: list[list[int]], counts: list[int]) -> float:
    """Return how many entries the tables between blocks would have."""
    within = np.zeros((len(members), len(couplings)), dtype=np.float32)
    for k, block in enumerate(members):
        within[k, block] = 1.0
    joined = np.triu(within @ (couplings > 0).astype(np.float32) @ within.T > 0, 1)
    size = np.array(counts, dtype=float)
    return float(size @ joined @ size)


def _assemble(tables: Tables, members: tuple[tuple[int, ...], ...]) -> Blocks:
    sizes = _sizes(tables)
    labels = tuple(
        np.array(list(itertools.product(*(range(sizes[g]) for g in block)))) for block in members
    )
    place = {g: (k, i) for k, block in enumerate(members) for i, g in enumerate(block)}
    loss = [tables.open_loss[list(b), n].sum(axis=1) for b, n in zip(members, labels, strict=True)]
    cost = [tables.cost[:, list(b), n].sum(axis=2) for b, n in zip(members, labels, strict=True)]
    pair_loss: dict[tuple[int, int], Floats] = {}
    pair_cost: dict[tuple[int, int], Floats] = {}
    for pair in tables.pairs:
        (k, i), (m, j) = place[pair.a], place[pair.b]
        if k > m:
            pair, (k, i), (m, j) = pair.transposed(), (m, j), (k, i)
        rows = tables.classes[pair.a][labels[k][:, i]]
        columns = tables.classes[pair.b][labels[m][:, j]]
        lost = np.where(pair.forbidden, np.inf, pair.loss)
        if k == m:
            loss[k] = loss[k] + lost[rows, columns]
            cost[k] = cost[k] + pair.cost[:, rows, columns]
            continue
        key, cells = (k, m), np.ix_(rows, columns)
        pair_loss[key] = pair_loss.get(key, 0.0) + lost[cells]
        if pair.cost.any():
            pair_cost[key] = pair_cost.get(key, 0.0) + pair.cost[:, rows][:, :, columns]
    return Blocks(
        members=members,
        labels=labels,
        loss=tuple(loss),
        cost=tuple(cost),
        pair_loss=pair_loss,
        pair_cost=pair_cost,
    )

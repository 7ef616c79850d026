"""Order of the paired groups, so that few groups are open at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mpq_compile.solve.tables import Tables

# Up to this many combinations of open classes the problem's own order is good enough.
NATURAL_LIMIT = 64
# Bits of choice that may be open at once: tables over more are too large, to check them as well.
WIDE = 16


def open_bits(tables: Tables) -> float:
    """Return the most bits of choice that are open at once along :func:`order_paired`."""
    neighbours, size = _graph(tables)
    return _width(order_paired(tables), neighbours, size) / math.log(2)


def order_paired(tables: Tables) -> list[int]:
    """Return the paired groups in their own order, or in a greedy one that keeps fewer open.

    A group is open while it is assigned and has a pair with one that is not. The greedy order
    takes next the group that leaves the fewest combinations of open classes.
    """
    natural = tables.paired()
    neighbours, size = _graph(tables)
    width = _width(natural, neighbours, size)
    if width <= math.log(NATURAL_LIMIT) + 1e-9:
        return natural
    greedy = _greedy(natural, neighbours, size)
    return greedy if _width(greedy, neighbours, size) < width - 1e-9 else natural


def _graph(tables: Tables) -> tuple[dict[int, set[int]], dict[int, float]]:
    """Return the neighbours of the paired groups, and the log of how many classes each has."""
    neighbours: dict[int, set[int]] = {g: set() for g in tables.paired()}
    for pair in tables.pairs:
        neighbours[pair.a].add(pair.b)
        neighbours[pair.b].add(pair.a)
    return neighbours, {g: math.log(float(tables.class_count[g])) for g in neighbours}


def _width(order: Sequence[int], neighbours: dict[int, set[int]], size: dict[int, float]) -> float:
    """Return the largest log number of combinations of open classes along the order."""
    widest, done = 0.0, set[int]()
    for g in order:
        done.add(g)
        widest = max(widest, sum(size[v] for v in done if neighbours[v] - done))
    return widest


def _greedy(
    natural: Sequence[int], neighbours: dict[int, set[int]], size: dict[int, float]
) -> list[int]:
    order: list[int] = []
    done: set[int] = set()
    open_groups: set[int] = set()
    left = {g: len(neighbours[g]) for g in natural}
    while len(order) < len(natural):
        g = min(
            (v for v in natural if v not in done),
            key=lambda v: (_growth(v, neighbours, size, open_groups, left), v),
        )
        order.append(g)
        done.add(g)
        for v in neighbours[g]:
            left[v] -= 1
        open_groups = {v for v in open_groups | {g} if left[v]}
    return order


def _growth(
    g: int,
    neighbours: dict[int, set[int]],
    size: dict[int, float],
    open_groups: set[int],
    left: dict[int, int],
) -> float:
    closed = sum(size[v] for v in neighbours[g] & open_groups if left[v] == 1)
    return (size[g] if left[g] else 0.0) - closed

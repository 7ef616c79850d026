"""Where the formats of several sites decide together what lies between them.

A tensor that one site stores and another reads costs more where their formats differ. What joins
the results of several sites, as attention and sums do, computes in the widest of their formats.
How much that costs on a device is learned from whole networks (``cost.latency``); here stands only
where it happens and how much data takes part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from mpq_compile.passes.base import target_name
from mpq_compile.passes.kinds import Kind, kinds
from mpq_compile.passes.network import Network
from mpq_compile.types import FORMAT_WIDTH

_JOINS = (Kind.ATTENTION, Kind.ADD, Kind.MULTIPLY, Kind.CONCAT)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Site ``b`` reads what site ``a`` stores; ``weight`` is the tensor's share of all such."""

    a: str
    b: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Join:
    """An operator that joins what ``sites`` compute.

    Args:
        operator: Its name: joins of one operator share their cost per element.
        sites: Two or more.
        weight: Its output's share of the outputs of all joins of the operator.
    """

    operator: str
    sites: tuple[str, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class Effects:
    """All edges and joins of a network; none where each site is believed to stand alone."""

    edges: tuple[Edge, ...] = ()
    joins: tuple[Join, ...] = ()

    def row(self, formats: Mapping[str, str]) -> dict[tuple[str, ...], float]:
        """Return how much of each effect there is, by (operator or "edge", formats).

        Args:
            formats: Format that each site reads.
        """
        row: dict[tuple[str, ...], float] = {}
        for edge in self.edges:
            pair = "edge", formats[edge.a], formats[edge.b]
            if pair[1] != pair[2]:
                row[pair] = row.get(pair, 0.0) + edge.weight
        for join in self.joins:
            name = join.operator, widest(*(formats[site] for site in join.sites))
            row[name] = row.get(name, 0.0) + join.weight
        return row


def widest(*formats: str) -> str:
    """Return the widest format."""
    return max(formats, key=FORMAT_WIDTH.__getitem__)


def effects_of(network: Network) -> Effects:
    """Find the edges and joins of a network."""
    table = kinds(network, allow_float=True)
    graph = network.module.graph
    sites = [node for node in graph.nodes if table.get(node.name) is Kind.SITE]
    size = {node: float(math.prod(network.shapes[node.name][0])) for node in sites}
    readers = {node: list(_readers(node, table, set())) for node in sites}
    edges = {
        (node, reader): size[node]
        for node in sites
        for reader in readers[node]
        if table[reader.name] is Kind.SITE
    }
    # A join that another join feeds is known by its direct sites only: through residual streams
    # each join would reach all sites before it.
    joined: dict[fx.Node, list[fx.Node]] = {}
    for node in sites:
        for reader in readers[node]:
            if table[reader.name] in _JOINS:
                joined.setdefault(reader, []).append(node)
    several = {join: parts for join, parts in joined.items() if len(parts) > 1}
    total = sum(edges.values())
    id_of = {node: network.site_of[node.name].id for node in sites}
    return Effects(
        edges=tuple(
            Edge(a=id_of[a], b=id_of[b], weight=weight / total) for (a, b), weight in edges.items()
        ),
        joins=tuple(
            Join(
                operator=target_name(join),
                sites=tuple(id_of[part] for part in parts),
                weight=_share(network, join, several),
            )
            for join, parts in several.items()
        ),
    )


def _share(network: Network, join: fx.Node, joins: Mapping[fx.Node, object]) -> float:
    sizes = {
        other: math.prod(network.shapes[other.name][0])
        for other in joins
        if target_name(other) == target_name(join)
    }
    return sizes[join] / sum(sizes.values())


def _readers(node: fx.Node, table: Mapping[str, Kind], seen: set[fx.Node]) -> Iterator[fx.Node]:
    """Yield the sites and joins that a result reaches through other operators, each once."""
    for user in node.users:
        if user in seen:
            continue
        seen.add(user)
        kind = table.get(user.name)
        if kind is Kind.SITE or kind in _JOINS:
            yield user
        elif kind is not None:
            yield from _readers(user, table, seen)

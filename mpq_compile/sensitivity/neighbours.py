"""Which sites' errors are likely to meet: neighbours in the graph, and sites of one block."""

from __future__ import annotations

import re
from itertools import combinations

from torch import fx

from mpq_compile.passes.network import Network

# layer1.0.conv1 → layer1.0; features.3.squeeze → features.3; blocks.0.3.mlp.fc1 → blocks.0.3
_BLOCK = re.compile(r"(?:[^.]+\.)*?(?:\d+\.)*\d+(?=\.)")


def near_pairs(network: Network) -> list[tuple[str, str]]:
    """Return pairs of sites that are adjacent, meet in an operator, or share a block.

    Adjacent: the second reads what the first computes, as input or as residual, with no site
    between. Meeting: both reach one operator (a sum, a concatenation, attention) with no site
    between. A block is a module that stands in a numbered list. Pairs are in the order of sites.
    """
    order = {site.id: number for number, site in enumerate(network.sites)}
    found = {*_by_graph(network), *_by_block(network)}
    ordered = (tuple(sorted(pair, key=order.__getitem__)) for pair in found)
    return sorted({(a, b) for a, b in ordered}, key=lambda pair: (order[pair[0]], order[pair[1]]))


def _by_graph(network: Network) -> set[tuple[str, str]]:
    site_of = {node: site.id for node, site in network.site_of.items()}
    reach: dict[fx.Node, set[str]] = {}
    pairs: set[tuple[str, str]] = set()
    for node in network.module.graph.nodes:
        sources = set().union(*(reach[source] for source in node.all_input_nodes))
        if node.op == "output":
            continue
        # What meets here: sites before the node, and the node itself where it is one.
        own = {site_of[node.name]} if node.name in site_of else set()
        pairs.update(combinations(sorted(sources | own), 2))
        reach[node] = own or sources
    return pairs


def _by_block(network: Network) -> set[tuple[str, str]]:
    blocks: dict[str, list[str]] = {}
    for site in network.sites:
        match = _BLOCK.match(site.path)
        if match:
            blocks.setdefault(match.group(0), []).append(site.id)
    return {pair for members in blocks.values() for pair in combinations(members, 2)}

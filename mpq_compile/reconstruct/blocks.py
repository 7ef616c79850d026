"""Blocks of a network, found from its graph: sites that are reconstructed together.

A block lies between two places where one tensor carries everything (BRECQ, arXiv 2102.05426, names
them by hand): a residual block, an inverted residual with what it squeezes and excites, a fire
module, a transformer's attention or its MLP, each with its skip. A chain is cut after every site,
but a convolution that mixes no channels belongs to the next one, which does [derived].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.network import Network
from mpq_compile.reconstruct.lockstep import Unit, site_units
from mpq_compile.sensitivity.base import QuantizedGraph

# A stretch with more sites, such as a densely connected stage, is cut into its sites.
LARGEST = 8


def block_units(graph: QuantizedGraph, largest: int = LARGEST) -> list[Unit]:
    """Return the network's blocks as units, in order; together they hold all nodes.

    Args:
        graph: The quantized graph.
        largest: The most sites that a block holds.
    """
    units: list[Unit] = []
    for nodes in _joined(graph.network, list(_stretches(graph))):
        block = _unit(graph.network, nodes)
        fits = len(block.sites) <= largest and _is_tensor(block.exit, graph.network)
        units += [block] if fits else parts(graph, block)
    return units


def parts(graph: QuantizedGraph, block: Unit) -> list[Unit]:
    """Return a block's nodes as a unit for each site, and for what lies between two."""
    inside = set(block.nodes)
    cut = []
    for unit in site_units(graph):
        nodes = tuple(node for node in unit.nodes if node in inside)
        if nodes:
            cut.append(Unit(nodes=nodes, sites=unit.sites if unit.exit in inside else ()))
    return cut


def _stretches(graph: QuantizedGraph) -> Iterator[list[fx.Node]]:
    """Yield the nodes up to each site, or sum, after which one tensor carries everything."""
    nodes = list(graph.module.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last_use = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    carrying: set[fx.Node] = set()
    alive: set[fx.Node] = set()
    current: list[fx.Node] = []
    for number, node in enumerate(nodes):
        current.append(node)
        if node.op == "placeholder" or carrying.intersection(node.all_input_nodes):
            carrying.add(node)
            alive.add(node)
        alive = {n for n in alive if last_use[n] > number}
        if alive == {node} and any(is_call(n, *ops.SITE_OPS) for n in current):
            yield current
            current = []
    if current:
        yield current


def _joined(network: Network, stretches: Sequence[list[fx.Node]]) -> Iterator[list[fx.Node]]:
    """Yield the stretches, each convolution that mixes no channels with what follows it."""
    waiting: list[fx.Node] = []
    for number, nodes in enumerate(stretches):
        waiting = [*waiting, *nodes]
        follows = any(is_call(n, *ops.SITE_OPS) for later in stretches[number + 1 :] for n in later)
        if not (follows and _mixes_nothing(network, nodes)):
            yield waiting
            waiting = []


def _mixes_nothing(network: Network, nodes: Sequence[fx.Node]) -> bool:
    """Tell whether these nodes hold one site, and that is a depthwise convolution."""
    found = [node for node in nodes if is_call(node, *ops.SITE_OPS)]
    if len(found) != 1:
        return False
    return network.site_of[found[0].name].depthwise


def _is_tensor(node: fx.Node, network: Network) -> bool:
    return node.name in network.shapes and node.op != "output"


def _unit(network: Network, nodes: Sequence[fx.Node]) -> Unit:
    site_of = network.site_of
    sites = [site_of[node.name].id for node in nodes if is_call(node, *ops.SITE_OPS)]
    return Unit(nodes=tuple(nodes), sites=tuple(sites))

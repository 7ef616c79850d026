"""The float and the quantized network side by side, unit by unit, over all samples.

Sites are reconstructed in the order in which they run, each on the inputs that the quantized sites
before it give. Both networks advance together, so that a pass over the data serves all sites; only
tensors that a later unit reads are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch, spread
from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.network import Network
from mpq_compile.sensitivity.base import QuantizedGraph

# What the tensors of both networks may take together, 10⁶ bytes.
MEMORY_MB = 1024.0

Values = dict[fx.Node, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Consecutive nodes of the quantized graph that are reconstructed together.

    Args:
        nodes: In order; a site comes with its quantizers.
        sites: The sites among them, in order.
    """

    nodes: tuple[fx.Node, ...]
    sites: tuple[str, ...]

    @property
    def exit(self) -> fx.Node:
        """The node whose value the unit is judged by."""
        return self.nodes[-1]


@dataclass
class Lockstep:
    """Both networks at the same place.

    Args:
        graph: Its quantizers are switched to the assignment that is reconstructed.
        batches: What is run.

    Attributes:
        exact: Values of the float network that are needed yet, one a batch.
        rounded: Those of the quantized one.
    """

    graph: QuantizedGraph
    batches: Sequence[Batch]
    exact: Values = field(default_factory=dict)
    rounded: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._interpreter = fx.Interpreter(self.graph.module)
        self._last_use = {}
        for node in self.graph.module.graph.nodes:
            for source in node.all_input_nodes:
                self._last_use[source] = node

    def run(self, units: Sequence[Unit], visit: Callable[[Unit], None]) -> None:
        """Advance through ``units``; ``visit`` finds the float values of a unit complete, and the
        quantized ones before it.
        """
        with torch.no_grad():
            for unit in units:
                self._advance(unit, self.exact, self._exact_value)
                visit(unit)
                self.advance(unit)
                self._forget(unit)

    def advance(self, unit: Unit) -> None:
        """Compute the quantized values of a unit: for ``run``, or for a part of what is visited."""
        self._advance(unit, self.rounded, self._value)

    def _advance(self, unit: Unit, values: Values, value_of: Callable[..., Any]) -> None:
        count = len(self.batches)
        for node in unit.nodes:
            if _is_fixed(node):
                values[node] = [value_of(node, values, 0)] * count
            elif node.op != "output":
                values[node] = [value_of(node, values, i) for i in range(count)]

    def _exact_value(self, node: fx.Node, values: Values, i: int) -> Any:
        if node.op == "call_module":  # a quantizer
            return values[node.args[0]][i]
        return self._value(node, values, i)

    def _value(self, node: fx.Node, values: Values, i: int) -> Any:
        if node.op == "placeholder":
            return self.inputs(i)[node]
        return self.evaluate(node, {source: values[source][i] for source in node.all_input_nodes})

    def inputs(self, i: int) -> Mapping[fx.Node, Tensor]:
        """Return the network's inputs of a batch, by node."""
        places = [n for n in self.graph.module.graph.nodes if n.op == "placeholder"]
        return dict(zip(places, self.batches[i].inputs, strict=True))

    def evaluate(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Return a node's value, of the values of what it reads."""
        self._interpreter.env = dict(values)
        return self._interpreter.run_node(node)

    def _forget(self, unit: Unit) -> None:
        done = set(unit.nodes)
        for values in (self.exact, self.rounded):
            for node in [n for n in values if self._last_use.get(n) in done]:
                del values[node]


def _is_fixed(node: fx.Node) -> bool:
    """Tell whether a node is a weight, or a weight's or a bias's quantizer."""
    source = node.args[0] if node.op == "call_module" else node
    return isinstance(source, fx.Node) and source.op == "get_attr"


def site_units(graph: QuantizedGraph) -> list[Unit]:
    """Return a unit for each site with its quantizers, and one for what lies between two sites."""
    units: list[Unit] = []
    between: list[fx.Node] = []
    site_of = graph.network.site_of
    for node in graph.module.graph.nodes:
        between.append(node)
        if is_call(node, *ops.SITE_OPS):
            own = {node, *(n for n in node.args[:3] if isinstance(n, fx.Node))}
            others = [n for n in between if n not in own]
            units += [Unit(nodes=tuple(others), sites=())] if others else []
            nodes = tuple(n for n in between if n in own)
            units.append(Unit(nodes=nodes, sites=(site_of[node.name].id,)))
            between = []
    return [*units, Unit(nodes=tuple(between), sites=())]


def affordable(network: Network, batches: Sequence[Batch], memory_mb: float) -> tuple[Batch, ...]:
    """Return as many of the batches as both networks hold in memory, one at least."""
    examples = network.captured.example_inputs
    samples = len(examples[0]) if examples and examples[0].dim() else 1
    per_sample = 2 * _live_bytes(network) / max(samples, 1)
    return spread(batches, max(1, int(memory_mb * 1e6 / per_sample)))


def _live_bytes(network: Network) -> float:
    """Return the most bytes of activations that are alive at once, for the example's batch."""
    nodes = list(network.module.graph.nodes)
    last = {source: node for node in nodes for source in node.all_input_nodes}
    alive: dict[fx.Node, float] = {}
    most = 0.0
    for node in nodes:
        shape, _ = network.shapes.get(node.name, ((), None))
        alive[node] = 0.0 if node.op == "get_attr" else 4.0 * prod(shape)
        most = max(most, sum(alive.values()))
        for source in [n for n in alive if last.get(n) is node]:
            del alive[source]
    return most

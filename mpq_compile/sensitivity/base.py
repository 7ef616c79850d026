"""What the metrics share: the quantized graph, and evaluation from one site on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.passes.base import ValueRecorder, run_passes
from mpq_compile.passes.insert_quantizers import InsertQuantizers, set_assignment
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.types import SensitivityTable

Choices = Mapping[str, Sequence[str]]


class Metric(Protocol):
    """A sensitivity metric.

    ``needs_labels`` tells whether batches must carry labels; ``unit`` names what ``loss`` is
    counted in. A call returns the loss increase of each (site, candidate), alone, against float.
    """

    needs_labels: bool
    unit: str

    def __call__(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
    ) -> SensitivityTable: ...


@dataclass
class QuantizedGraph:
    """The float graph with switchable quantizers, evaluated from any site on.

    Args:
        network: The prepared network.
        calibration: Ranges of its tensors.
    """

    network: Network
    calibration: Calibration
    module: fx.GraphModule = field(init=False)

    def __post_init__(self) -> None:
        step = InsertQuantizers(network=self.network, calibration=self.calibration)
        self.module = run_passes(self.network.module, [step])
        self._nodes = {node.name: node for node in self.module.graph.nodes}
        self._downstream = {
            site.id: _downstream(self._nodes[self.network.node_of[site.id]])
            for site in self.network.sites
        }

    def float_values(self, batch: Batch) -> dict[str, Any]:
        """Run in float; return the value of every node."""
        set_assignment(self.module, self.network, {})
        recorder = ValueRecorder(self.module, lambda _, value: value)
        with torch.no_grad():
            recorder.run(*batch.inputs)
        return recorder.kept

    def outputs_with(
        self, values: Mapping[str, Any], site: str, candidate: str
    ) -> tuple[Tensor, ...]:
        """Return the outputs with one site quantized; only what follows it is computed again."""
        set_assignment(self.module, self.network, {site: candidate})
        changed = self._downstream[site]
        environment = {node: values[name] for name, node in self._nodes.items()}
        interpreter = fx.Interpreter(self.module)
        interpreter.env = environment
        with torch.no_grad():
            for node in changed:
                result = interpreter.run_node(node)
                environment[node] = result
        return environment[changed[-1]]

    def site_output(self, values: Mapping[str, Any], site: str, candidate: str) -> Tensor:
        """Return the output of one site with its own weight and input quantized."""
        set_assignment(self.module, self.network, {site: candidate})
        node = self._nodes[self.network.node_of[site]]
        interpreter = fx.Interpreter(self.module)
        environment = {self._nodes[name]: value for name, value in values.items()}
        interpreter.env = environment
        with torch.no_grad():
            for argument in (node.args[0], node.args[1]):
                environment[argument] = interpreter.run_node(argument)
            return interpreter.run_node(node)


def _downstream(site: fx.Node) -> list[fx.Node]:
    """The site's quantizers, the site, and every node that depends on it, in order."""
    affected = {site.args[0], site.args[1], site}
    for node in site.graph.nodes:
        if any(source in affected for source in node.all_input_nodes):
            affected.add(node)
    return [node for node in site.graph.nodes if node in affected]


def pairs(choices: Choices) -> Iterator[tuple[str, str]]:
    """Iterate over (site, candidate), leaving out fp32, whose loss is zero."""
    for site, names in choices.items():
        for name in names:
            if name != "fp32":
                yield site, name


def empty_table(choices: Choices) -> dict[str, dict[str, float]]:
    """Return a table of zeros."""
    return {site: dict.fromkeys(names, 0.0) for site, names in choices.items()}

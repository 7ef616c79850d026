"""What the metrics share: the quantized graph, and evaluation from one site on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder, run_passes
from mpq_compile.passes.insert_quantizers import InsertQuantizers, set_assignment
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.types import Candidate, SensitivityTable

Choices = Mapping[str, Sequence[str]]


class Metric(Protocol):
    """A sensitivity metric.

    ``needs_labels`` tells whether batches must carry labels; ``unit`` names what ``loss`` is
    counted in. A call returns the loss increase of each (site, candidate), alone, against float. Of
    tied sites ``choices`` names the first one, which stands for all of them (``leading``).
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
        self._interpreter = fx.Interpreter(self.module)
        self._nodes = {node.name: node for node in self.module.graph.nodes}
        self._downstream = {
            site.id: _downstream([self._nodes[self.network.node_of[site.id]]])
            for site in self.network.sites
        }
        self._tied = tied(self.network)

    def assign(self, assignment: Mapping[str, str]) -> None:
        """Switch every quantizer: sites that ``assignment`` leaves out compute in fp32."""
        set_assignment(self.module, self.network, assignment)

    def float_values(self, batch: Batch) -> dict[str, Any]:
        """Run in float; return the value of every node."""
        self.assign({})
        recorder = ValueRecorder(self.module, lambda _, value: value)
        with torch.no_grad():
            recorder.run(*batch.inputs)
        return recorder.kept

    def outputs_for(
        self, values: Mapping[str, Any], site: str, candidates: Sequence[str]
    ) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        """Yield each candidate and the outputs with this site, and those tied to it, quantized.

        Only what follows the first of them is computed again.
        """
        members = self._tied[site]
        if len(members) > 1:
            yield from self._outputs_together(values, members, candidates)
            return
        changed = self._downstream[site]
        for candidate, environment in self._quantized(values, site, candidates):
            self._run(environment, [node for node in changed if node not in environment])
            yield candidate, environment[changed[-1]]

    def _outputs_together(
        self, values: Mapping[str, Any], sites: Sequence[str], candidates: Sequence[str]
    ) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        changed = _downstream([self._nodes[self.network.node_of[site]] for site in sites])
        own = set(changed)
        kept = {n: values[name] for name, n in self._nodes.items() if n not in own}
        for candidate in candidates:
            self.assign(dict.fromkeys(sites, candidate))
            environment = dict(kept)
            self._run(environment, changed)
            yield candidate, environment[changed[-1]]

    def tied_to(self, site: str) -> Sequence[str]:
        """Return the sites that share a candidate with this one, itself among them, in order."""
        return self._tied[site]

    def outputs_with(
        self, values: Mapping[str, Any], site: str, candidate: str
    ) -> tuple[Tensor, ...]:
        """Return the outputs with one site, and those tied to it, quantized."""
        return next(self.outputs_for(values, site, [candidate]))[1]

    def site_outputs(
        self, values: Mapping[str, Any], site: str, candidates: Sequence[str]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield each candidate and the site's output with its own weight and input quantized."""
        node = self._nodes[self.network.node_of[site]]
        for candidate, environment in self._quantized(values, site, candidates):
            yield candidate, environment[node]

    def site_output(self, values: Mapping[str, Any], site: str, candidate: str) -> Tensor:
        """Return the output of one site with its own weight and input quantized."""
        return next(self.site_outputs(values, site, [candidate]))[1]

    def _quantized(
        self, values: Mapping[str, Any], site: str, candidates: Sequence[str]
    ) -> Iterator[tuple[str, dict[fx.Node, Any]]]:
        """Yield each candidate and the values that do not depend on the site, and its own.

        Candidates that read their input in one format share its quantized form.
        """
        node = self._nodes[self.network.node_of[site]]
        own = [n for n in node.args[:3] if isinstance(n, fx.Node)]
        x = own[0]
        changed = set(self._downstream[site])
        kept = {n: values[name] for name, n in self._nodes.items() if n not in changed}
        inputs: dict[tuple[str, bool], Any] = {}
        for candidate in candidates:
            parsed = Candidate.parse(candidate)
            form = (parsed.input_format, parsed.dynamic)
            self.assign({site: candidate})
            environment = dict(kept)
            if form in inputs:
                environment[x] = inputs[form]
            self._run(environment, [n for n in (*own, node) if n not in environment])
            inputs[form] = environment[x]
            yield candidate, environment

    def _run(self, environment: dict[fx.Node, Any], nodes: Sequence[fx.Node]) -> None:
        """Compute ``nodes``, in order, and put their values into ``environment``."""
        self._interpreter.env = environment
        with torch.no_grad():
            for node in nodes:
                environment[node] = self._interpreter.run_node(node)


def _downstream(sites: Sequence[fx.Node]) -> list[fx.Node]:
    """The sites' quantizers, the sites, and every node that depends on them, in order."""
    affected = {node for site in sites for node in (site, *site.args[:3])}
    for node in sites[0].graph.nodes:
        if any(source in affected for source in node.all_input_nodes):
            affected.add(node)
    return [node for node in sites[0].graph.nodes if node in affected]


def tied(network: Network) -> dict[str, list[str]]:
    """Return, for each site, the sites of its group in order."""
    groups: dict[str, list[str]] = {}
    for site in network.sites:
        groups.setdefault(site.group, []).append(site.id)
    return {site.id: groups[site.group] for site in network.sites}


def leading(network: Network, choices: Choices) -> dict[str, Sequence[str]]:
    """Return the choices of the first site of each group, which stands for all of it.

    Errors of one weight that is read several times go the same way: what they do together is
    several times the sum of what each does alone, so that the sum would say too little.
    """
    members = tied(network)
    return {site: names for site, names in choices.items() if members[site][0] == site}


def with_followers(network: Network, table: SensitivityTable, choices: Choices) -> SensitivityTable:
    """Return a table of all sites; those that another one stands for add nothing to its loss."""
    leaders = leading(network, choices)
    loss = {
        site: table.loss[site] if site in leaders else dict.fromkeys(names, 0.0)
        for site, names in choices.items()
    }
    spread = {site: values for site, values in table.spread.items() if site in leaders}
    return replace(table, loss=loss, spread=spread)


def pairs(choices: Choices) -> Iterator[tuple[str, str]]:
    """Iterate over (site, candidate), leaving out fp32, whose loss is zero."""
    for site, names in choices.items():
        for name in names:
            if name != "fp32":
                yield site, name


def table_of(
    metric: str,
    unit: str,
    choices: Choices,
    samples: Tensor,
    pairs_of: Mapping[tuple[str, str], Mapping[tuple[str, str], float]] | None = None,
) -> SensitivityTable:
    """Return the table of means over samples, with their standard errors.

    Args:
        metric, unit: As in the table.
        choices: Candidates of each site.
        samples: Loss of each sample, float64 [(site, candidate) in the order of ``pairs``, N].
        pairs_of: Cross terms, by pair of sites.
    """
    count = samples.shape[1]
    means = samples.mean(1)
    errors = (samples - means[:, None]).square().sum(1).div(max(count - 1, 1) * count).sqrt()
    return SensitivityTable(
        metric=metric,
        unit=unit,
        loss=by_site(choices, means),
        spread=by_site(choices, errors) if count > 1 else {},
        pairs=pairs_of or {},
    )


def check_table(table: SensitivityTable, choices: Choices) -> None:
    """Refuse a table that lacks a loss, or has one that is not a finite number.

    Raises:
        CalibrationError: Naming the site and the candidate.
    """
    for site, names in choices.items():
        for name in names:
            loss = table.loss.get(site, {}).get(name)
            if loss is not None and math.isfinite(loss):
                continue
            raise CalibrationError(
                f"the metric {table.metric!r} has no finite loss",
                where=f"{site}, {name}",
                expected="a finite number for each candidate of each site",
                found=loss,
                remedy="look for values in the data, or in the network's outputs, that are NaN or "
                "too large for float32",
            )


def by_site(choices: Choices, values: Sequence[float] | Tensor) -> dict[str, dict[str, float]]:
    """Return one value for each (site, candidate), in the order of ``pairs``; zero for fp32."""
    table = {site: dict.fromkeys(names, 0.0) for site, names in choices.items()}
    for (site, candidate), value in zip(pairs(choices), values, strict=True):
        table[site][candidate] = float(value)
    return table

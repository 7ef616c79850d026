"""The network as it is deployed, with everything that may be trained as a parameter.

Each tensor is rounded where it is stored, in the format in which it is stored, so that residuals
and joins read codes as they will on the device; a site that reads a narrower format rounds again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from mpq_compile.passes.base import Pass, run_passes
from mpq_compile.passes.formats import quantizer_roots, stored_formats
from mpq_compile.passes.kinds import kinds
from mpq_compile.passes.network import Network
from mpq_compile.passes.rounding import fitted_bias, fitted_weight
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.reference import fake_quantize_rows
from mpq_compile.quant.weights import ChannelFit, QuantizedWeight, weight_spec
from mpq_compile.training.learned import LearnedBias, LearnedRange, LearnedWeight, Straight
from mpq_compile.training.taps import AppendTaps
from mpq_compile.types import Candidate, QParams, QSpec, format_bits, storage

# Width at which the steps of biases are counted.
_BIAS_BITS = 8


@dataclass
class Student:
    """A trainable copy of a network under one assignment.

    Args:
        network: The prepared network.
        calibration: Ranges, codes and fits to start from.
        assignment: A candidate for every site.
        allow_float: Run operators without integer rule in float.

    Attributes:
        module: The graph; called with the flat inputs, it returns the outputs, and after them
            those of all sites.
        weights, biases: By site; sites that read one weight share it.
        ranges: By (tensor, bits).
    """

    network: Network
    calibration: Calibration
    assignment: Mapping[str, str]
    allow_float: bool = False
    module: fx.GraphModule = field(init=False)
    weights: dict[str, LearnedWeight] = field(default_factory=dict, init=False)
    biases: dict[str, LearnedBias] = field(default_factory=dict, init=False)
    ranges: dict[tuple[str, int], LearnedRange] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        passes: list[Pass] = [AppendTaps(taps=self.taps), _InsertLearned(student=self)]
        self.module = run_passes(self.network.module, passes)
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        for learned in self.learned:
            learned.requires_grad_(True)

    @property
    def outputs(self) -> int:
        """How many outputs the network has."""
        return len(self.network.node("output").args[0])

    @property
    def taps(self) -> list[str]:
        """The nodes of all sites."""
        return [self.network.node_of[site.id] for site in self.network.sites]

    def teacher(self) -> fx.GraphModule:
        """Return the float graph, with the same outputs."""
        return run_passes(self.network.module, [AppendTaps(taps=self.taps)])

    @property
    def learned(self) -> Sequence[nn.Module]:
        """Everything with parameters to train, each once."""
        found = (*self.weights.values(), *self.biases.values(), *self.ranges.values())
        return list(dict.fromkeys(found))

    def trained(self) -> Calibration:
        """Return the calibration with weights, biases and ranges as they are now."""
        weights: dict[tuple[str, QSpec], QuantizedWeight] = dict(self.calibration.weights)
        fits: dict[tuple[str, QSpec], ChannelFit] = dict(self.calibration.fits)
        for site, weight in self.weights.items():
            weights[site, weight.spec] = weight.quantized()
            bias = self.biases.get(site)
            ones = torch.ones(weight.shape[0])
            shift = torch.zeros_like(ones)
            if bias is not None:
                shift = bias().detach() - self.network.bias(site)
            fits[site, weight.spec] = ChannelFit(gain=ones, shift=shift)
        found: dict[tuple[str, int], QParams] = {
            key: learned.qparams() for key, learned in self.ranges.items()
        }
        return replace(self.calibration, weights=weights, fits=fits).with_qparams(found)


@dataclass(frozen=True, kw_only=True)
class _InsertLearned:
    """Put learned quantizers at weights and biases of sites, and where tensors are stored."""

    student: Student
    name: str = "insert_learned_quantizers"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        _Insertion(self.student, module).run()
        return module


class _Insertion:
    def __init__(self, student: Student, module: fx.GraphModule) -> None:
        network = student.network
        self.student, self.module = student, module
        self.site_of = network.site_of
        self.candidates = {
            name: Candidate.parse(student.assignment[site.id])
            for name, site in self.site_of.items()
        }
        table = kinds(network, student.allow_float)
        self.roots = quantizer_roots(network, table)
        self.formats = stored_formats(network, table, self.candidates)
        self.names = {id(value): name for name, value in module.named_modules()}
        self.tied: dict[tuple[str, QSpec], LearnedWeight] = {}

    def run(self) -> None:
        nodes = list(self.module.graph.nodes)
        for node in nodes:
            if node.name in self.candidates:
                self._site(node)
        for node in nodes:
            self._store(node)

    def _store(self, node: fx.Node) -> None:
        """Round a tensor where it is made; its readers read what is stored."""
        fmt = self.formats.get(node.name, "fp32")
        # Of several results each is rounded where it is picked.
        several = node.name not in self.student.network.shapes
        if node.op not in ("call_function", "placeholder") or fmt == "fp32" or several:
            return
        readers = list(node.users)
        with self.module.graph.inserting_after(node):
            stored = self._call(self._rounding(node.name, fmt), node)
        for reader in readers:
            reader.replace_input_with(node, stored)

    def _site(self, node: fx.Node) -> None:
        candidate, site = self.candidates[node.name], self.site_of[node.name]
        student, graph = self.student, self.module.graph
        x, weight, bias = node.args[:3]
        with graph.inserting_before(node):
            fmt = candidate.input_format
            if not site.multiplies:
                pass  # numbers of rows are not rounded
            elif candidate.dynamic:
                x = self._call(Straight(fake_quantize_rows), x)
            elif fmt not in ("fp32", self.formats[x.name]):
                x = self._call(self._rounding(x.name, fmt), x)
            if candidate.weight_bits == 16:
                weight = self._call(Straight(_bf16), weight)
            elif not candidate.is_float:
                weight = self._call(self._weight(site.id, candidate))
                if student.network.biased(site.id):
                    bias = self._call(self._bias(site.id, node.name, candidate))
        node.args = (x, weight, bias, *node.args[3:])

    def _weight(self, site: str, candidate: Candidate) -> LearnedWeight:
        student = self.student
        weight = student.network.weight(site)
        # Not the group: weights that were derived from one differ by the norms folded into them.
        key = student.network.owner_of[site], weight_spec(candidate)
        if key not in self.tied:
            start = fitted_weight(student.network, student.calibration, site, candidate)
            self.tied[key] = LearnedWeight(weight, start)
        student.weights[site] = self.tied[key]
        return self.tied[key]

    def _bias(self, site: str, node: str, candidate: Candidate) -> LearnedBias:
        student = self.student
        start = fitted_bias(student.network, student.calibration, site, candidate)
        step = student.calibration.qparams(self.roots[node], _BIAS_BITS).scale
        student.biases[site] = LearnedBias(start, step)
        return student.biases[site]

    def _rounding(self, node: str, fmt: str) -> nn.Module:
        if storage(fmt) != "u8":
            return Straight(_bf16)
        key = (self.roots[node], format_bits(fmt))
        if key not in self.student.ranges:
            self.student.ranges[key] = LearnedRange(self.student.calibration.qparams(*key))
        return self.student.ranges[key]

    def _call(self, module: nn.Module, *args: Any) -> fx.Node:
        """Call a module of the graph; it is added where it is not there yet."""
        if id(module) not in self.names:
            self.names[id(module)] = f"learned_{len(self.names)}"
            self.module.add_submodule(self.names[id(module)], module)
        return self.module.graph.call_module(self.names[id(module)], args)


def _bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()

"""Bits that a gradient can change: every candidate's roundings side by side in one graph.

A site's weight is W = Σ_b π_b Q_b(W) over the weight widths that it is offered, with π the softmax
of logits; its input is mixed in the same way over activation widths, with logits of its own. All
branches share one weight. EdMIPS (arXiv 2004.05795) and GMPQ (arXiv 2108.02720) do so [source]; and
they add to the loss what the bits cost, in units of the first layer:

    complexity = Σ_l (MACs_l / MACs_1) · E[activation bits of l] · E[weight bits of l]

Scales of weights are those of the prepared network's own rounding, fitted again to the weights when
``refit`` is called; ranges of activations are the calibrated ones. At the end each site takes the
candidate of greatest probability.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from mpq_compile.errors import PlanError
from mpq_compile.passes.base import constant, run_passes
from mpq_compile.passes.formats import quantizer_roots
from mpq_compile.passes.kinds import kinds
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.quant.weights import quantize_weight, weight_spec
from mpq_compile.search.bits import Bits
from mpq_compile.search.mixture import (
    ActivationCodes,
    Bfloat16,
    Exact,
    Rounder,
    Rows,
    WeightCodes,
    mixture,
)
from mpq_compile.sensitivity.base import Choices
from mpq_compile.types import Candidate


class MixedWeight(nn.Module):
    """Returns a site's weight as its branches round it, mixed."""

    def __init__(self, bits: Bits) -> None:
        super().__init__()
        self.bits = bits
        self.rounders: list[Rounder] = []

    def refit(self, weight: Tensor) -> None:
        """Fit the scales of every branch to ``weight``."""
        branches = self.bits.weight_branches.values()
        self.rounders = [_weight_rounder(weight, candidate) for candidate in branches]

    def forward(self, weight: Tensor) -> Tensor:
        return mixture(weight, self.bits.weight_logits.softmax(0), self.rounders)


class MixedInput(nn.Module):
    """Returns a site's input as its branches read it, mixed."""

    def __init__(self, bits: Bits, calibration: Calibration, root: str) -> None:
        super().__init__()
        self.bits = bits
        branches = bits.input_branches.values()
        self.rounders = [_input_rounder(calibration, root, candidate) for candidate in branches]

    def forward(self, x: Tensor) -> Tensor:
        return mixture(x, self.bits.input_logits.softmax(0), self.rounders)


def _weight_rounder(weight: Tensor, candidate: Candidate) -> Rounder:
    if candidate.weight_bits == 32:
        return Exact()
    if candidate.weight_bits == 16:
        return Bfloat16()
    return WeightCodes.like(quantize_weight(weight, weight_spec(candidate)))


def _input_rounder(calibration: Calibration, root: str, candidate: Candidate) -> Rounder:
    if candidate.dynamic:
        return Rows()
    if candidate.activation_bits == 32:
        return Exact()
    if candidate.activation_bits == 16:
        return Bfloat16()
    return ActivationCodes(qparams=calibration.qparams(root, candidate.activation_bits))


@dataclass(frozen=True, kw_only=True)
class InsertBranches:
    """Put the mixtures before every site, and make its weight and bias parameters.

    Args:
        network: The prepared network.
        calibration: Ranges of its tensors.
        bits: The logits of each tie.
    """

    network: Network
    calibration: Calibration
    bits: Mapping[str, Bits]
    name: str = "insert_branches"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        roots = quantizer_roots(self.network, kinds(self.network, allow_float=True))
        nodes = {node.name: node for node in module.graph.nodes}
        for index, site in enumerate(self.network.sites):
            node = nodes[self.network.node_of[site.id]]
            x, weight, bias = node.args[:3]
            for value in (weight, bias):
                _train(module, value)
            bits = self.bits[site.group]
            mixed = {
                "input": MixedInput(bits, self.calibration, roots[x.name]),
                "weight": MixedWeight(bits),
            }
            name = branches_name(index)
            module.add_submodule(name, nn.ModuleDict(mixed))
            with module.graph.inserting_before(node):
                x = module.graph.call_module(f"{name}.input", (x,))
                weight = module.graph.call_module(f"{name}.weight", (weight,))
            node.args = (x, weight, *node.args[2:])
        return module


def branches_name(index: int) -> str:
    """Return the name of the submodule that holds the mixtures of a site."""
    return f"branches_{index}"


def _train(module: fx.GraphModule, node: object) -> None:
    """Make the constant of a ``get_attr`` node a parameter that takes gradients."""
    value = constant(module, node)
    if value is None or value.requires_grad:
        return
    owner, _, leaf = str(node.target).rpartition(".")  # type: ignore[attr-defined]
    holder = module.get_submodule(owner)
    delattr(holder, leaf)
    holder.register_parameter(leaf, nn.Parameter(value.detach().clone()))


@dataclass
class BranchedGraph:
    """The network with all branches of all sites, ready to be trained.

    Args:
        network: The prepared network; it is not changed.
        calibration: Ranges of its tensors.
        choices: Candidates of each site; sites that share a weight choose among common ones.

    Attributes:
        module: Called with the flat inputs, returns the flat outputs.
        bits: The logits of each tie.

    Raises:
        PlanError: Sites that share a weight have no candidate in common.
    """

    network: Network
    calibration: Calibration
    choices: Choices
    module: fx.GraphModule = field(init=False)
    bits: dict[str, Bits] = field(init=False)

    def __post_init__(self) -> None:
        self.bits = {group: Bits(names) for group, names in self._common()}
        step = InsertBranches(network=self.network, calibration=self.calibration, bits=self.bits)
        self.module = run_passes(self.network.module, [step])
        self.refit()

    def _common(self) -> Iterator[tuple[str, list[str]]]:
        for group in dict.fromkeys(site.group for site in self.network.sites):
            members = [site.id for site in self.network.sites if site.group == group]
            offered = [self.choices[site] for site in members]
            names = [n for n in offered[0] if all(n in others for others in offered)]
            if not names:
                raise PlanError(
                    "sites that share a weight have no candidate in common",
                    where=members[0],
                    expected="a candidate that each of them offers",
                    found="; ".join(", ".join(others) for others in offered),
                    remedy="offer all of them the same candidates",
                )
            yield group, names

    @property
    def logits(self) -> dict[str, nn.Parameter]:
        """Logits of weight and input branches by tie."""
        return {
            f"{group}.{name}": value
            for group, bits in self.bits.items()
            for name, value in bits.named_parameters()
        }

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Weights and biases of the sites, by name."""
        logits = {id(value) for value in self.logits.values()}
        named = self.module.named_parameters()
        return {n: p for n, p in named if p.requires_grad and id(p) not in logits}

    def refit(self) -> None:
        """Fit the scales of all weight branches to the weights as they are now."""
        nodes = {node.name: node for node in self.module.graph.nodes}
        for index, site in enumerate(self.network.sites):
            mixed = self.module.get_submodule(f"{branches_name(index)}.weight")
            rounded = nodes[self.network.node_of[site.id]].args[1]
            weight = constant(self.module, rounded.args[0])
            assert isinstance(mixed, MixedWeight) and weight is not None
            mixed.refit(weight)

    def complexity(self) -> Tensor:
        """Return Σ_l (MACs_l / MACs_1) · E[a_l] · E[w_l], a scalar."""
        first = self.network.sites[0].macs
        terms = [
            site.macs / first * self.bits[site.group].expected_product()
            for site in self.network.sites
        ]
        return torch.stack(terms).sum()

    def scores(self) -> dict[str, dict[str, float]]:
        """Return the log-probability of each candidate of each site."""
        by_group = {group: bits.scores() for group, bits in self.bits.items()}
        return {site.id: by_group[site.group] for site in self.network.sites}

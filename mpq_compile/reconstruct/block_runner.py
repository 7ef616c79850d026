"""One block of the quantized network, run on what reaches it, with weights that are searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from mpq_compile.passes.insert_quantizers import ActivationQuantizer
from mpq_compile.passes.network import Network
from mpq_compile.reconstruct.lockstep import Lockstep, Unit
from mpq_compile.reconstruct.rounded_site import RoundedSite


class Searched(Protocol):
    """Weight and bias of a site while they are searched; ``bias`` is None where it has none."""

    @property
    def bias(self) -> Tensor | None: ...

    def weight(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class GivenSite:
    """A site with this weight and bias, float32."""

    value: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, network: Network, site: str, rounded: RoundedSite) -> GivenSite:
        """Return a site as it was rounded."""
        bias = network.bias(site) + rounded.shift if network.biased(site) else None
        return cls(value=rounded.weight.dequantize(), bias=bias)

    def weight(self) -> Tensor:
        """Return the weight."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class BlockRunner:
    """Runs a block.

    Args:
        lockstep: Both networks, before the block.
        block: Its nodes.
        sites: What is searched, by site; other weights are what the calibration has.
        fisher: Weight of each element of the output, broadcast over samples.
        drop: Share of the quantized activations that are left float (QDrop, arXiv 2203.05740).
        generator: Draws them.
    """

    lockstep: Lockstep
    block: Unit
    sites: Mapping[str, Searched]
    fisher: Tensor
    drop: float = 0.0
    generator: torch.Generator | None = None

    def loss(self, batch: int) -> Tensor:
        """Return the mean weighted squared error of the block's output for a batch."""
        exact = self.lockstep.exact[self.block.exit][batch]
        return ((self(batch) - exact).square() * self.fisher).mean()

    def __call__(self, batch: int) -> Tensor:
        """Return the block's output for a batch."""
        inside, given = set(self.block.nodes), self._given()
        values: dict[fx.Node, Any] = dict(given)
        for node in self.block.nodes:
            for source in node.all_input_nodes:
                if source not in inside and source not in values:
                    values[source] = self._entering(source, batch)
            if node not in given:
                values[node] = self._value(node, values, batch)
        return values[self.block.exit]

    def _given(self) -> dict[fx.Node, Any]:
        """Return the values of what is searched, by the nodes that would give them."""
        node_of = self.lockstep.graph.network.node_of
        sites = {node_of[site]: searched for site, searched in self.sites.items()}
        given: dict[fx.Node, Any] = {}
        for node in self.block.nodes:
            if node.name in sites:
                given[node.args[1]] = sites[node.name].weight()
                if node.args[2] is not None:
                    given[node.args[2]] = sites[node.name].bias
        return given

    def _entering(self, source: fx.Node, batch: int) -> Any:
        rounded = self.lockstep.rounded[source][batch]
        return self._mixed(rounded, self.lockstep.exact[source][batch])

    def _value(self, node: fx.Node, values: Mapping[fx.Node, Any], batch: int) -> Any:
        if node.op == "placeholder":
            return self.lockstep.inputs(batch)[node]
        if node.op == "call_module":
            quantizer = self.lockstep.graph.module.get_submodule(str(node.target))
            if isinstance(quantizer, ActivationQuantizer):
                x = values[node.args[0]]
                return self._mixed(quantizer.straight_through(x), x)
        return self.lockstep.evaluate(node, {n: values[n] for n in node.all_input_nodes})

    def _mixed(self, rounded: Any, exact: Any) -> Any:
        """Return quantized values, a share of them float."""
        tensor = isinstance(rounded, Tensor) and rounded.is_floating_point()
        if not (self.drop and tensor):
            return rounded
        dropped = torch.rand(rounded.shape, generator=self.generator) < self.drop
        return torch.where(dropped, exact, rounded)

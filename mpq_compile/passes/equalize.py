"""Cross-layer equalization: each channel spans as much in what makes it as in what reads it.

For a producer's rows W₁ and its readers' columns W₂, with ranges r₁ and r₂ by channel,

    s = √(r₁ / r₂),    W₁ ← S⁻¹ W₁,  b₁ ← S⁻¹ b₁,  W₂ ← W₂ S

makes both ranges √(r₁ r₂), which maximises how much of its tensor's range each channel uses (Nagel
et al., arXiv 1906.04721, section 4.1). Seams share sites, so they are swept until nothing moves:
expand, depthwise and project of an inverted residual meet in two. No data is needed.

The bias counts into r₁ [derived]: a channel whose weights are nearly zero, as pruning and weight
decay leave them, holds its bias, and would have been blown up with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import constant, is_call
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import by_column, column_factors, rescale
from mpq_compile.passes.seams import Seam, find_seams

_SWEEPS = 100
# Sweeps end when no factor moves by more than this, as a logarithm.
_SETTLED = 1e-4


def equalize(network: Network) -> Network:
    """Return a network with equalized weights and the same function, up to float rounding.

    Seams between sites are equalized: see ``passes.seams`` for where they are. Channels without
    weights on one side stay as they are, and so do all others.
    """
    seams = [seam for seam in find_seams(network) if is_site(network, seam.producer)]
    return rescale(network, seams, cross_layer_factors(network, seams))


def is_site(network: Network, name: str) -> bool:
    """Tell whether the node of that name is a convolution or a linear layer."""
    return is_call(network.node(name), *ops.SITE_OPS)


def cross_layer_factors(network: Network, seams: Sequence[Seam]) -> dict[str, Tensor]:
    """Return what each producer is divided by, float64 [N], by its name."""
    magnitudes = _Magnitudes(network, seams)
    factors: dict[str, Tensor] = {}
    for _ in range(_SWEEPS):
        moved = 0.0
        for seam in seams:
            factor = magnitudes.balance(seam)
            factors[seam.producer] = factors.get(seam.producer, torch.ones(())) * factor
            moved = max(moved, float(factor.log().abs().max()))
        if moved < _SETTLED:
            break
    return factors


class _Magnitudes:
    """Largest magnitudes by row and column of each site on a seam, scaled as the sweeps go."""

    def __init__(self, network: Network, seams: Sequence[Seam]) -> None:
        nodes = {node.name: node for node in network.module.graph.nodes}
        names = {seam.producer for seam in seams}
        names |= {reader.node for seam in seams for reader in seam.readers}
        self._weights = {name: _largest(network, nodes[name]) for name in names}
        self._biases = {name: _bias(network, nodes[name]) for name in names}

    def balance(self, seam: Seam) -> Tensor:
        """Return the factors that balance a seam, and scale what is kept by them."""
        own = torch.maximum(self._weights[seam.producer].amax(1), self._biases[seam.producer])
        theirs = columns_of(seam, self._weights)
        known = seam.free & (own > 0) & (theirs > 0)
        factor = torch.where(known, own / theirs, 1.0).sqrt()
        factor = factor.where(factor.isfinite() & (factor > 0), torch.ones_like(factor))
        self._weights[seam.producer] = self._weights[seam.producer] / factor[:, None]
        self._biases[seam.producer] = self._biases[seam.producer] / factor
        for reader in seam.readers:
            weight = self._weights[reader.node]
            columns = by_column(column_factors(reader, factor), weight)
            self._weights[reader.node] = weight * columns
        return factor


def columns_of(seam: Seam, magnitudes: Mapping[str, Tensor]) -> Tensor:
    """Return the largest magnitude in the readers' columns by channel of the producer, [N].

    Args:
        seam: The seam.
        magnitudes: Those of each reader's weight by node name, float64 [N, C/groups].
    """
    found = torch.zeros(len(seam.free), dtype=torch.float64)
    for reader in seam.readers:
        weight = magnitudes[reader.node]
        groups = reader.channels.numel() // weight.shape[1]
        columns = weight.unflatten(0, (groups, -1)).amax(1).flatten()
        seen = reader.channels >= 0
        found.scatter_reduce_(0, reader.channels[seen], columns[seen], "amax")
    return found


def magnitudes_of(network: Network, seams: Sequence[Seam]) -> dict[str, Tensor]:
    """Return the largest magnitude over the taps of each reader's weight, float64 [N, C/groups]."""
    names = {reader.node for seam in seams for reader in seam.readers}
    nodes = [node for node in network.module.graph.nodes if node.name in names]
    return {node.name: _largest(network, node) for node in nodes}


def _largest(network: Network, node: fx.Node) -> Tensor:
    weight = constant(network.module, node.args[1])
    assert weight is not None
    return weight.double().abs().flatten(2).amax(2) if weight.dim() > 2 else weight.double().abs()


def _bias(network: Network, node: fx.Node) -> Tensor:
    bias = constant(network.module, node.args[2])
    if bias is None:
        return torch.zeros((), dtype=torch.float64)
    return bias.double().abs()

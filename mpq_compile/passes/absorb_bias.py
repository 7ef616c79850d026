"""Move what a channel always holds out of its tensor, into the biases of what reads it.

A channel that is at least c everywhere passes c through ReLU unchanged, so that

    W₂ f(W₁ x + b₁) + b₂ = W₂ f(W₁ x + b₁ − c) + (b₂ + W₂ c)

and its tensor's range shrinks by c (Nagel et al., arXiv 1906.04721, section 4.1.3). Batch norms
say how large c may be: behind ReLU it is max(0, β − 3 |γ|), which holds for 99.87 % of a normal's
values, and is not exact for the others. Where nothing is clamped any c is exact, and it is β, so
that all channels have one centre [derived].
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import constant, is_call
from mpq_compile.passes.fold_batchnorm import NormStatistics
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import by_column, with_constants
from mpq_compile.passes.seams import find_seams, shared_constants

_EVERYWHERE = (-ops.INF, ops.INF)
_RELU = (0.0, ops.INF)


def absorb_biases(network: Network, sigmas: float = 3.0) -> Network:
    """Return a network whose readers hold what their inputs always hold.

    Left as they are: sites without the statistics of a batch norm or without a bias, and those
    whose result goes through anything before a site reads it, or is padded there: zeros that stand
    around a tensor do not move with it.

    Args:
        network: The prepared network; it stays as it is.
        sigmas: Standard deviations below the mean that values behind a ReLU are taken to reach;
            infinity moves only what is exact.
    """
    shared = shared_constants(network)
    nodes = {node.name: node for node in network.module.graph.nodes}
    changed: dict[str, Tensor] = {}
    statistics = dict(network.statistics)

    def shift(node: fx.Node, amount: Tensor) -> None:
        bias = constant(network.module, node.args[2])
        assert bias is not None
        changed[str(node.args[2].target)] = (
            changed.get(str(node.args[2].target), bias.double()) + amount
        )

    for seam in find_seams(network):
        producer = nodes[seam.producer]
        readers = [nodes[reader.node] for reader in seam.readers]
        if seam.producer not in statistics or not all(
            _takes_shift(reader, producer, shared) for reader in readers
        ):
            continue
        amount = _amount(producer, statistics[seam.producer], sigmas)
        amount = amount.where(seam.free, torch.zeros_like(amount))
        shift(producer, -amount)
        for reader in readers:
            shift(reader, _made_of(network, reader, amount))
        statistics[seam.producer] = statistics[seam.producer].lowered(amount)
    return with_constants(network, changed, statistics)


def _takes_shift(reader: fx.Node, producer: fx.Node, shared: set[str]) -> bool:
    """Tell whether a site's output moves by a constant where all of its input does."""
    bias = reader.args[2]
    if reader.args[0] is not producer or bias is None or str(bias.target) in shared:
        return False
    if is_call(reader, ops.site_linear):
        return True
    padding, spread = reader.args[5], tuple(reader.args[8])
    return max(padding) <= 0 and spread == (1, 1)


def _amount(producer: fx.Node, found: NormStatistics, sigmas: float) -> Tensor:
    bounds = tuple(producer.args[-2:])
    if bounds == _EVERYWHERE:
        return found.mean
    if bounds == _RELU and isfinite(sigmas):
        return (found.mean - sigmas * found.std).clamp_min(0.0)
    return torch.zeros_like(found.mean)


def _made_of(network: Network, reader: fx.Node, amount: Tensor) -> Tensor:
    """Return what a site makes of the same amounts everywhere, float64 [N]."""
    weight = constant(network.module, reader.args[1])
    assert weight is not None
    taps = weight.double()
    return (taps * by_column(amount, taps)).flatten(1).sum(1)

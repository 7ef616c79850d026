"""Divide producers by factors and multiply their readers: another network, the same function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from mpq_compile.passes.base import constant, copied
from mpq_compile.passes.network import Network, NormStatistics, with_shared
from mpq_compile.passes.seams import Reader, Seam, producer_constants


def rescale(network: Network, seams: Sequence[Seam], factors: Mapping[str, Tensor]) -> Network:
    """Return a network whose tensors are divided by ``factors``; the one given stays as it is.

    Each constant is scaled in float64 by all of its factors, and rounded once.

    Args:
        network: The prepared network.
        seams: Those of ``find_seams``.
        factors: Positive factors by producer, [N]; what is missing, or held, counts as 1.
    """
    nodes = {node.name: node for node in network.module.graph.nodes}
    changed: dict[str, Tensor] = {}
    statistics = dict(network.statistics)

    def current(node: fx.Node) -> Tensor:
        value = constant(network.module, node)
        assert value is not None
        return changed.get(str(node.target), value.double())

    for seam in seams:
        if seam.producer not in factors:
            continue
        factor = factors[seam.producer].double()
        factor = factor.where(seam.free, torch.ones_like(factor))
        for rows in producer_constants(nodes[seam.producer]):
            changed[str(rows.target)] = current(rows) / _by_row(factor, current(rows))
        for reader in seam.readers:
            weight = nodes[reader.node].args[1]
            columns = column_factors(reader, factor)
            changed[str(weight.target)] = current(weight) * by_column(columns, current(weight))
        if seam.producer in statistics:
            statistics[seam.producer] = statistics[seam.producer].divided(factor)
    return with_constants(network, changed, statistics)


def with_constants(
    network: Network, values: Mapping[str, Tensor], statistics: Mapping[str, NormStatistics]
) -> Network:
    """Return a network with other constants, by name; rounded to the type of the old ones."""
    module = copied(network.module)
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        old = getattr(owner, leaf)
        new = value.to(old.dtype)
        is_parameter = isinstance(old, nn.Parameter)
        setattr(owner, leaf, nn.Parameter(new, requires_grad=False) if is_parameter else new)
    changed = replace(network, module=module, statistics=statistics, _rounded={})
    # Copies of one weight that were scaled by other factors are weights of their own.
    weights = [changed.weight(site.id) for site in changed.sites]
    return replace(changed, sites=tuple(with_shared(changed.sites, weights)), _rounded={})


def column_factors(reader: Reader, factor: Tensor) -> Tensor:
    """Return the factor of each input channel of a reader, [C]; 1 where it has none."""
    known = factor[reader.channels.clamp_min(0)]
    return known.where(reader.channels >= 0, torch.ones_like(known))


def by_column(columns: Tensor, weight: Tensor) -> Tensor:
    """Return values by input channel [C] in the shape that a weight [N, C/groups, ...] takes."""
    width = weight.shape[1]
    groups = columns.numel() // width
    rows = columns.reshape(groups, 1, width).expand(groups, weight.shape[0] // groups, width)
    return rows.reshape(weight.shape[0], width, *[1] * (weight.dim() - 2))


def _by_row(factor: Tensor, value: Tensor) -> Tensor:
    return factor.reshape(-1, *[1] * (value.dim() - 1))

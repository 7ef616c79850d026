"""Seams: where a factor by channel can move from what makes a tensor to what reads it.

With f(s x) = s f(x) for s > 0 in each channel between them,

    W₂ f(W₁ x + b₁) = (W₂ S) f(S⁻¹ (W₁ x + b₁)),    S = diag(s)

so a producer's rows may be divided, and its readers' columns multiplied, by any positive factors
(Nagel et al., arXiv 1906.04721). The network says which: the number of each channel is carried
through the graph by the graph's own reshapes, transpositions and slices, through ReLU, pooling,
products with what does not depend on the producer, and attention as far as it weighs values. A
channel is free where all of its ways end at sites, held where one ends elsewhere: at a sum, at a
network's output, at an operator that is not homogeneous. A ReLU6, or any clamp at a value, is not:
its bound would have to be another one in each channel [derived].
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, constant, is_call
from mpq_compile.passes.kinds import MOVES, RESHAPES
from mpq_compile.passes.network import Network

aten = torch.ops.aten
_LAST_AXIS = (ops.site_linear, aten.layer_norm.default, aten.rms_norm.default)
_NORMS = (aten.layer_norm.default, aten.rms_norm.default)
_HOMOGENEOUS = (aten.leaky_relu.default, aten.abs.default, aten.neg.default)
_FACTORS = (aten.mul.Tensor, aten.div.Tensor)
_POOLS = (
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_bilinear2d.vec,
)
_RESIDUAL = 3
# What stands for a value that does not come from the producer.
_FOREIGN = -1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A site that reads a producer's channels.

    Args:
        node: Name of its node.
        channels: Producer's channel by input channel, int64 [C]; −1 where it is none of them.
    """

    node: str
    channels: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Seam:
    """A producer and all that reads it.

    Args:
        producer: Name of a node: a site, a layer norm, an RMS norm or an affine.
        free: Channels whose factor may be any, bool [N]; that of the others is 1.
        readers: In order of execution, one at least.
    """

    producer: str
    free: Tensor
    readers: tuple[Reader, ...]


def find_seams(network: Network) -> tuple[Seam, ...]:
    """Return the seams of a network in order of execution; what has no free channel is no seam."""
    shared = shared_constants(network)
    seams = []
    for node in network.module.graph.nodes:
        rows = producer_constants(node)
        if rows and not _names(rows) & shared:
            walk = _Walk(network, node, shared)
            if walk.readers and bool(walk.free.any()):
                seams.append(Seam(producer=node.name, free=walk.free, readers=tuple(walk.readers)))
    return tuple(seams)


def producer_constants(node: fx.Node) -> list[fx.Node]:
    """Return the constants whose first axis is the channel of what a node makes.

    None where its result cannot be scaled by scaling them.
    """
    if is_call(node, *ops.CLAMPED) and not _keeps_sign(node.args[-2:]):
        return []
    found: list[Any] = []
    if is_call(node, *ops.SITE_OPS) and node.args[_RESIDUAL] is None:
        found = [node.args[1], node.args[2]]
    if is_call(node, ops.channel_affine):
        found = [node.args[1], node.args[2]]
    if is_call(node, *_NORMS) and len(node.args[1]) == 1 and argument(node, 2, "weight"):
        bias = argument(node, 3, "bias") if is_call(node, aten.layer_norm.default) else None
        found = [argument(node, 2, "weight"), bias]
    found = [value for value in found if value is not None]
    return found if all(value.op == "get_attr" for value in found) else []


def channel_axis(node: fx.Node) -> int:
    """Return the axis of a node's channels: the last of linear layers and layer norms, else 1."""
    return -1 if is_call(node, *_LAST_AXIS) else 1


def _keeps_sign(bounds: tuple[Any, ...]) -> bool:
    """Tell whether a clamp is positively homogeneous: at zero, or nowhere."""
    return all(bound in (-ops.INF, 0.0, ops.INF) for bound in bounds)


def _names(constants: list[fx.Node]) -> set[str]:
    return {str(node.target) for node in constants}


def shared_constants(network: Network) -> set[str]:
    """Return names of constants that are read twice, under one name or under several."""
    reads: Counter[int] = Counter()
    place: dict[str, int] = {}
    for node in network.module.graph.nodes:
        value = constant(network.module, node)
        if value is not None:
            place[str(node.target)] = value.untyped_storage().data_ptr()
            reads[place[str(node.target)]] += len(node.users)
    return {name for name, start in place.items() if reads[start] > 1}


class _Walk:
    """Follows a producer's channels to where they are read.

    A tensor stands as one of the same shape that holds the number of the channel which each value
    comes from, and ``_FOREIGN`` where it comes from none.
    """

    def __init__(self, network: Network, producer: fx.Node, shared: set[str]) -> None:
        self._shapes: Mapping[str, Any] = network.shapes
        self._shared = shared
        shape = self._shape(producer)
        axis = channel_axis(producer) % len(shape)
        count = shape[axis]
        spread = [count if i == axis else 1 for i in range(len(shape))]
        numbers = torch.arange(count, dtype=torch.float64).reshape(spread)
        self._values: dict[fx.Node, Any] = {producer: numbers.expand(shape)}
        self.free = torch.ones(count, dtype=torch.bool)
        self.readers: list[Reader] = []
        for node in network.module.graph.nodes:
            sources = [source for source in node.all_input_nodes if source in self._values]
            if sources:
                self._visit(node, sources)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return self._shapes[node.name][0]

    def _visit(self, node: fx.Node, sources: list[fx.Node]) -> None:
        if self._scales_columns(node, sources):
            self._read(node)
            return
        found = self._carried(node, sources)
        if found is not None:
            self._values[node] = found
            return
        for source in sources:
            self._hold(self._values[source])

    def _hold(self, value: Any) -> None:
        parts = value if isinstance(value, (tuple, list)) else [value]
        for part in parts:
            numbers = part[part != _FOREIGN].long().unique()
            self.free[numbers] = False

    # Readers

    def _scales_columns(self, node: fx.Node, sources: list[fx.Node]) -> bool:
        if not is_call(node, *ops.SITE_OPS) or sources != [node.args[0]]:
            return False
        return node.args[_RESIDUAL] not in sources and str(node.args[1].target) not in self._shared

    def _read(self, node: fx.Node) -> None:
        numbers = self._values[node.args[0]].movedim(channel_axis(node), 0).flatten(1)
        first, last = numbers.amin(1), numbers.amax(1)
        # An input channel that holds several of the producer's cannot follow any of them.
        self._hold(numbers[first != last])
        channels = first.where(first == last, torch.full_like(first, _FOREIGN))
        self.readers.append(Reader(node=node.name, channels=channels.long()))

    # What lies between

    def _carried(self, node: fx.Node, sources: list[fx.Node]) -> Any:
        """Return the numbers of a node's values; None where they are lost."""
        if node.target is operator.getitem:
            return self._values[sources[0]][node.args[1]]
        if is_call(node, aten.cat.default):
            return self._joined(node)
        if is_call(node, aten.scaled_dot_product_attention.default):
            return self._attended(node)
        value = self._values[sources[0]]
        if len(sources) > 1 or not isinstance(value, Tensor):
            return None
        if is_call(node, ops.multiply, *_FACTORS):
            return self._multiplied(node, value)
        if is_call(node, *_POOLS):
            return self._constant_over(node, value, (2, 3)) if value.dim() == 4 else None
        if is_call(node, aten.mean.dim):
            return self._averaged(node, value)
        if is_call(node, *_HOMOGENEOUS):
            return value
        if is_call(node, ops.clamp):
            return value if _keeps_sign(node.args[1:]) else None
        if is_call(node, *RESHAPES):
            return value.reshape(self._shape(node))
        if node.target in MOVES and len(node.all_input_nodes) == 1:
            return node.target(value, *node.args[1:], **node.kwargs)
        return None

    def _multiplied(self, node: fx.Node, value: Tensor) -> Tensor | None:
        if is_call(node, ops.multiply) and not _keeps_sign(node.args[2:]):
            return None
        if is_call(node, aten.div.Tensor) and node.args[0] not in self._values:
            return None
        return value.broadcast_to(self._shape(node))

    def _constant_over(self, node: fx.Node, value: Tensor, axes: tuple[int, ...]) -> Tensor | None:
        """Return the numbers of a tensor whose values are mixed along ``axes``."""
        first = value.amin(axes, keepdim=True)
        return first.expand(self._shape(node)) if _is_constant(value, axes) else None

    def _averaged(self, node: fx.Node, value: Tensor) -> Tensor | None:
        axes: Any = argument(node, 1, "dim")
        if not axes or not _is_constant(value, tuple(axes)):
            return None
        return value.amin(tuple(axes), keepdim=bool(argument(node, 2, "keepdim", False)))

    def _joined(self, node: fx.Node) -> Tensor:
        parts = [
            self._values.get(part, torch.full(self._shape(part), _FOREIGN, dtype=torch.float64))
            for part in node.args[0]
        ]
        axis: Any = argument(node, 1, "dim", 0)
        return torch.cat(parts, axis)

    def _attended(self, node: fx.Node) -> Tensor | None:
        """Attention is linear in its values, by channel; queries, keys and masks are held."""
        value = self._values.get(node.args[2])
        others = [n for n in node.all_input_nodes if n is not node.args[2]]
        if node.args[2] in node.args[:2] or node.kwargs.get("enable_gqa", False):
            return None
        for other in others:
            if other in self._values:
                self._hold(self._values[other])
        if value is None or not _is_constant(value, (-2,)):
            return None
        return value[..., :1, :].expand(self._shape(node))


def _is_constant(value: Tensor, axes: tuple[int, ...]) -> bool:
    return bool((value.amin(axes) == value.amax(axes)).all())

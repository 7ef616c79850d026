"""What the lifts share: layers of one or three dimensions become two-dimensional ones.

A tensor of a layer that is lifted has a twin, which the layer's own twin reads. So has what lies
between two such layers: then no conversion stands between a convolution and its norm, activation
and residual. Readers that have no twin get the tensor back from it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import KEPT_META, constant

# A call: what, with which arguments, and by which names.
Twin = tuple[Any, tuple[Any, ...]] | tuple[Any, tuple[Any, ...], dict[str, Any]]
Rules = Mapping[Any, Callable[[Any, fx.Node], Twin | None]]


def rank_of(node: Any) -> int | None:
    """Return the number of axes of what a node gives; None where it is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, Tensor) else None


class Lifting(ABC):
    """State of a rewrite: the twin of each tensor that has one.

    Subclasses say which ``rank`` they lift, and how a tensor and its twin are made of each other.

    Args:
        module: What is rewritten.
        layers: Rules of what is lifted in any case. A rule returns the twin's call, or None where
            there is none.
        followers: Rules of what is lifted where it reads something that was.
    """

    rank: int

    def __init__(self, module: fx.GraphModule, layers: Rules, followers: Rules) -> None:
        self.module = module
        self.layers = layers
        self.followers = followers
        self.twins: dict[fx.Node, fx.Node] = {}
        self.here = next(iter(module.graph.nodes))

    def run(self) -> None:
        """Lift what can be, in the graph's order, then give the others what they read."""
        for node in list(self.module.graph.nodes):
            # A mean over all of space has two axes, and no twin but itself.
            if node.op == "call_function" and rank_of(node) in (2, self.rank):
                self.here = node
                with self.module.graph.inserting_before(node):
                    self._visit(node)
        for node in reversed(self.twins):
            self._retire(node, self.twins[node])

    def _visit(self, node: fx.Node) -> None:
        if self._is_layer(node):
            twin = self.layers[node.target](self, node)
        elif not any(source in self.twins for source in node.all_input_nodes):
            return
        elif node.target in self.followers and self.rank in (rank_of(node), rank_of(node.args[0])):
            twin = self.followers[node.target](self, node)
        else:
            twin = self._pointwise(node)
        if twin is not None:
            self._add(node, *twin)

    def _is_layer(self, node: fx.Node) -> bool:
        whole = rank_of(node) == self.rank and node.target in self.layers
        return whole and rank_of(node.args[0]) == self.rank

    def _add(self, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Any = None) -> None:
        twin = self.module.graph.call_function(target, args, kwargs or {})
        twin.meta.update({key: node.meta[key] for key in KEPT_META if key in node.meta})
        if rank_of(node) == self.rank:
            twin.meta["val"] = self.lifted_value(node.meta["val"])
        self.twins[node] = twin

    def _retire(self, node: fx.Node, twin: fx.Node) -> None:
        """Give the readers that were not lifted the tensor itself."""
        if node.users:
            whole = twin
            if rank_of(node) == self.rank:
                with self.module.graph.inserting_before(twin.next):
                    self.here = twin.next
                    whole = self.lowered(twin, node.meta["val"])
                whole.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(whole)
        self.module.graph.erase_node(node)

    def _pointwise(self, node: fx.Node) -> Twin | None:
        """Any function of single values; constants broadcast to the twin as to the tensor."""
        tags = getattr(node.target, "tags", ())
        if torch.Tag.pointwise not in tags or rank_of(node) != self.rank:
            return None
        if not all(self.fits(source, node) for source in node.all_input_nodes):
            return None
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda source: self.operand(source, node)
        )
        return node.target, tuple(args), dict(kwargs)

    def value(self, node: Any) -> Tensor | None:
        """Return a constant's value, or what stands for a tensor's."""
        value = constant(self.module, node)
        return node.meta.get("val") if value is None else value

    def fits(self, source: fx.Node, result: fx.Node) -> bool:
        """Tell whether an operand of ``result`` has a twin that broadcasts to the result's."""
        value = self.value(source)
        return isinstance(value, Tensor) and value.dim() > 0

    def operand(self, source: fx.Node, result: fx.Node) -> fx.Node:
        """Return the twin of an operand of ``result``."""
        return self.twin(source)

    @abstractmethod
    def twin(self, node: Any) -> fx.Node:
        """Return the twin of a tensor, or of a constant that broadcasts to one."""

    @abstractmethod
    def lifted_value(self, value: Tensor) -> Tensor:
        """Return what stands for a twin, of what stands for the tensor."""

    @abstractmethod
    def lowered(self, twin: fx.Node, value: Tensor) -> fx.Node:
        """Return a tensor like ``value``, emitted from its twin."""

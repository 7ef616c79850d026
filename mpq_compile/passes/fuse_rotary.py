"""x · cos + rotate_half(x) · sin becomes one rotary embedding, as most decoders write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, is_call, replace
from mpq_compile.passes.fuse_epilogues import Shapes

aten = torch.ops.aten
_OPEN = ((), (-ops.INF, ops.INF))


@dataclass(frozen=True, kw_only=True)
class FuseRotary:
    """Replace each such sum over [., ., ., D], where cos and sin broadcast to x.

    Args:
        shapes: Shape and dtype by node name.
    """

    shapes: Shapes
    name: str = "fuse_rotary"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            found = self._rotated(node)
            if found is not None:
                replace(module, node, ops.rotary, found)
        return module

    def _shape(self, node: Any) -> tuple[int, ...]:
        return self.shapes.get(getattr(node, "name", ""), ((),))[0]

    def _rotated(self, node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
        """Return (x, cos, sin)."""
        if not _is_open(node, ops.add) or len(self._shape(node)) != 4:
            return None
        for straight, turned in (node.args[:2], node.args[1::-1]):
            for half, sin in _factors(turned):
                x = self._halves(half)
                cos = next((c for value, c in _factors(straight) if x is value), None)
                if x is not None and cos is not None and self._broadcast(x, cos, sin):
                    return x, cos, sin
        return None

    def _halves(self, node: Any) -> fx.Node | None:
        """Return x where ``node`` is [−second half of x, first half of x] along the last axis."""
        if not is_call(node, aten.cat.default) or len(node.args[0]) != 2:
            return None
        rank = len(self._shape(node))
        negative, first = node.args[0]
        if int(argument(node, 1, "dim", 0)) % rank != rank - 1:  # type: ignore[call-overload]
            return None
        if not is_call(negative, aten.neg.default) or not is_call(first, aten.slice.Tensor):
            return None
        second, x = negative.args[0], first.args[0]
        half = self._shape(x)[-1] // 2
        if not is_call(second, aten.slice.Tensor) or second.args[0] is not x:
            return None
        spans = [self._span(part) for part in (first, second)]
        return x if spans == [range(half), range(half, 2 * half)] else None

    def _span(self, part: fx.Node) -> range | None:
        """Return which elements of the last axis a slice takes."""
        shape = self._shape(part.args[0])
        axis: Any = argument(part, 1, "dim", 0)
        if int(axis) % len(shape) != len(shape) - 1:
            return None
        span = slice(*(argument(part, i, n) for i, n in ((2, "start"), (3, "end"), (4, "step"))))
        return range(*span.indices(shape[-1]))

    def _broadcast(self, x: fx.Node, *tables: Any) -> bool:
        sizes = self._shape(x)
        for table in tables:
            shape = self._shape(table)
            if len(shape) != 4 or shape[-1] != sizes[-1]:
                return False
            if any(n not in (1, size) for n, size in zip(shape, sizes, strict=True)):
                return False
        return sizes[-1] % 2 == 0


def _is_open(node: Any, target: object) -> bool:
    return is_call(node, target) and tuple(node.args[2:]) in _OPEN


def _factors(node: Any) -> list[tuple[Any, Any]]:
    if not _is_open(node, ops.multiply):
        return []
    return [tuple(node.args[:2]), tuple(node.args[1::-1])]

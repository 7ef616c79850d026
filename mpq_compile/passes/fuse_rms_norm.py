"""x · rsqrt(mean(x²) + ε) · weight becomes one RMS norm, as LlamaRMSNorm and others write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, constant, is_call, only_user, replace
from mpq_compile.passes.fuse_epilogues import Shapes

aten = torch.ops.aten
_PRODUCTS = (ops.multiply, aten.mul.Tensor)
_OPEN = ((), (-ops.INF, ops.INF))


@dataclass(frozen=True, kw_only=True)
class FuseRmsNorm:
    """Replace each such product; a factor by columns that follows joins it.

    Args:
        shapes: Shape and dtype by node name.
    """

    shapes: Shapes
    name: str = "fuse_rms_norm"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            found = self._normalised(node)
            if found is not None:
                self._fuse(module, node, *found)
        return module

    def _fuse(self, module: fx.GraphModule, node: fx.Node, x: fx.Node, epsilon: float) -> None:
        columns, weight = self.shapes[x.name][0][-1], None
        scaled = only_user(node)
        if scaled is not None:
            weight = self._weight(module, scaled, node, columns)
        place = node if weight is None or scaled is None else scaled
        replace(module, place, aten.rms_norm.default, (x, [columns], weight, epsilon))

    def _normalised(self, node: fx.Node) -> tuple[fx.Node, float] | None:
        """Return (x, ε) where ``node`` is x · rsqrt(mean(x²) + ε), also by sqrt and a quotient."""
        if is_call(node, aten.div.Tensor):
            pairs, root = [tuple(node.args[:2])], aten.sqrt.default
        elif _is_product(node):
            pairs, root = [tuple(node.args[:2]), tuple(node.args[1::-1])], aten.rsqrt.default
        else:
            return None
        for x, factor in pairs:
            if isinstance(factor, fx.Node) and _is_step(factor, aten.reciprocal.default):
                factor, root = factor.args[0], aten.sqrt.default
            if isinstance(x, fx.Node) and _is_step(factor, root):
                epsilon = self._mean_square(factor.args[0], x)
                if epsilon is not None:
                    return x, epsilon
        return None

    def _mean_square(self, node: Any, x: fx.Node) -> float | None:
        """Return ε where ``node`` is mean(x², last axis) + ε."""
        if not _is_step(node, aten.add.Tensor) or not isinstance(node.args[1], (int, float)):
            return None
        mean = node.args[0]
        if not _is_step(mean, aten.mean.dim) or not argument(mean, 2, "keepdim", False):
            return None
        rank = len(self.shapes.get(x.name, ((),))[0])
        axes: Any = argument(mean, 1, "dim")
        if rank == 0 or [int(axis) % rank for axis in axes or ()] != [rank - 1]:
            return None
        return float(node.args[1]) if _is_square(mean.args[0], x) else None

    def _weight(
        self, module: fx.GraphModule, scaled: fx.Node, node: fx.Node, columns: int
    ) -> fx.Node | None:
        """Return the factors of the columns that ``scaled`` multiplies ``node`` with."""
        if not _is_product(scaled):
            return None
        for value, weight in (scaled.args[:2], scaled.args[1::-1]):
            factors = constant(module, weight)
            if value is node and factors is not None and tuple(factors.shape) == (columns,):
                return weight
        return None


def _is_step(node: Any, *targets: object) -> bool:
    """Tell whether ``node`` calls one of ``targets`` for a single reader."""
    return is_call(node, *targets) and only_user(node) is not None


def _is_product(node: Any) -> bool:
    return is_call(node, *_PRODUCTS) and tuple(node.args[2:]) in _OPEN


def _is_square(node: Any, x: fx.Node) -> bool:
    if _is_step(node, aten.pow.Tensor_Scalar):
        return node.args[0] is x and node.args[1] == 2
    return _is_product(node) and only_user(node) is not None and node.args[:2] == (x, x)

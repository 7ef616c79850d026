"""matmul(q, kᵀ) · scale (+ mask) → softmax → matmul(p, v) becomes one attention.

This is how attention is written where it is not ``scaled_dot_product_attention``. Anything that
reads a value in between, another axis, or shapes that broadcast leave the chain as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, constant, is_call, only_user, replace
from mpq_compile.passes.fuse_epilogues import Shapes
from mpq_compile.passes.sink_expands import broadcast_source

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_WHERES = (aten.where.self, aten.where.ScalarSelf)
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
_SUMS = (aten.add.Tensor, ops.add)


@dataclass(frozen=True, kw_only=True)
class FuseAttention:
    """Replace each such chain.

    Args:
        shapes: Shape and dtype by node name.
    """

    shapes: Shapes
    name: str = "fuse_attention"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, *_PRODUCTS):
                self._fuse(module, node)
        return module

    def _fuse(self, module: fx.GraphModule, output: fx.Node) -> None:
        weights, v = _unguarded(module, output.args[0]), output.args[1]
        if weights is None or not self._over_keys(weights):
            return
        scores, mask = self._unmasked(weights.args[0])
        scores, factor = _unscaled(scores)
        if not _is_step(scores, *_PRODUCTS):
            return
        (q, q_factor), (k, k_factor) = (_unscaled(value) for value in scores.args[:2])
        if not self._fits(q, k, v):
            return
        k = self._transposed(module, output, k)
        scale = factor * q_factor * k_factor
        fused = replace(
            module,
            output,
            aten.scaled_dot_product_attention.default,
            (q, k, v, mask, 0.0, False),
        )
        fused.kwargs = {"scale": scale}

    def _transposed(self, module: fx.GraphModule, output: fx.Node, k: fx.Node) -> fx.Node:
        """Return keys as rows: what was transposed, or its transposition."""
        rank = len(self._shape(k) or ())
        if is_call(k, aten.transpose.int):
            axes = sorted(int(axis) % rank for axis in k.args[1:3])
            if axes == [rank - 2, rank - 1]:
                return k.args[0]
        with module.graph.inserting_before(output):
            return module.graph.call_function(aten.transpose.int, (k, -2, -1))

    def _over_keys(self, softmax: fx.Node) -> bool:
        rank = len(self._shape(softmax) or ())
        dtype = argument(softmax, 2, "dtype")
        plain = softmax.target is not aten.softmax.int or dtype in (None, torch.float32)
        return rank > 0 and int(argument(softmax, 1, "dim")) % rank == rank - 1 and plain  # type: ignore[call-overload]

    def _unmasked(self, scores: Any) -> tuple[Any, Any]:
        """Return the scores before a mask is added, and the mask; None where there is none."""
        if not _is_step(scores, *_SUMS) or not _unclamped(scores):
            return scores, None
        for value, mask in (scores.args[:2], scores.args[1::-1]):
            is_mask = isinstance(mask, fx.Node) and self._is_float(mask)
            if self._shape(value) == self._shape(scores) and is_mask and _is_scores(value):
                return value, broadcast_source(mask)
        return scores, None

    def _fits(self, q: Any, k: Any, v: Any) -> bool:
        """Tell whether [..., Tq, D], [..., D, Tk] and [..., Tk, Dv] share their first axes."""
        shapes = [self._shape(value) for value in (q, k, v)]
        if any(shape is None or len(shape) not in (3, 4) for shape in shapes):
            return False
        return len({shape[:-2] for shape in shapes if shape}) == 1

    def _shape(self, node: Any) -> tuple[int, ...] | None:
        return self.shapes.get(getattr(node, "name", ""), (None,))[0]

    def _is_float(self, node: fx.Node) -> bool:
        return self.shapes.get(node.name, (None, None))[1] == torch.float32


def _unguarded(module: fx.GraphModule, weights: Any) -> fx.Node | None:
    """Return the softmax that gives the weights, also where its NaNs become zeros.

    That is what exporters write for ``scaled_dot_product_attention``, for rows that are masked
    entirely: there it gives zeros.
    """
    if _is_step(weights, *_SOFTMAXES):
        found: fx.Node = weights
        return found
    if not _is_step(weights, *_WHERES, *_FILLS):
        return None
    order = (1, 2, 0) if is_call(weights, *_FILLS) else (0, 1, 2)
    test, zero, softmax = (weights.args[i] for i in order)
    guarded = (
        _is_step(test, aten.isnan.default)
        and test.args[0] is softmax
        and is_call(softmax, *_SOFTMAXES)
        and set(softmax.users) == {test, weights}
        and _is_zero(module, zero)
    )
    return softmax if guarded else None


def _is_zero(module: fx.GraphModule, value: Any) -> bool:
    tensor = constant(module, value) if isinstance(value, fx.Node) else None
    return value == 0 if tensor is None else not tensor.any()


def _is_step(node: Any, *targets: object) -> bool:
    """Tell whether ``node`` calls one of ``targets`` for a single reader."""
    return is_call(node, *targets) and only_user(node) is not None


def _is_scores(node: Any) -> bool:
    return _is_step(_unscaled(node)[0], *_PRODUCTS)


def _unclamped(node: fx.Node) -> bool:
    return node.target is not ops.add or tuple(node.args[2:]) in ((), (-ops.INF, ops.INF))


def _unscaled(node: Any) -> tuple[Any, float]:
    """Return what a number multiplies or divides, and the factor."""
    if not _is_step(node, aten.mul.Tensor, aten.div.Tensor):
        return node, 1.0
    value, number = node.args[:2]
    if not isinstance(number, (int, float)):
        return node, 1.0
    return value, float(number) if node.target is aten.mul.Tensor else 1.0 / number

"""matmul(q, kᵀ) · scale (+ mask) → softmax → matmul(p, v) becomes one attention.

This is how attention is written where it is not ``scaled_dot_product_attention``. Anything that
reads a value in between, another axis, or shapes that broadcast leave the chain as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import (
    add_constant,
    argument,
    call,
    constant,
    is_call,
    only_user,
    replace,
)
from mpq_compile.passes.fuse_epilogues import Shapes
from mpq_compile.passes.sink_expands import broadcast_source

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_WHERES = (aten.where.self, aten.where.ScalarSelf)
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
_SUMS = (aten.add.Tensor, ops.add)
# A score that is this much lower has no weight.
_HIDES = -1e9


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
        scores, masks = self._unmasked(weights.args[0])
        if not all(mask.is_known(module) for mask in masks):
            return
        scores, factor = _unscaled(scores)
        if not _is_step(scores, *_PRODUCTS):
            return
        (q, q_factor), (k, k_factor) = (_unscaled(value) for value in scores.args[:2])
        if not self._fits(q, k, v):
            return
        k = self._transposed(module, output, k)
        scale = factor * q_factor * k_factor
        mask = _joined(module, output, masks)
        ranks = [len(self._shape(n) or ()) for m in masks for n in (m.value, m.seen)]
        if mask is not None and max(ranks) < 2:  # one value for each key
            mask = call(module, output, aten.unsqueeze.default, mask, 0)
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

    def _unmasked(self, scores: Any) -> tuple[Any, list[_Mask]]:
        """Return the scores before anything is added or hidden, and what that was."""
        if _is_step(scores, aten.where.self) and self._shape(scores.args[1]) == self._shape(scores):
            seen, value, fill = scores.args[:3]
            inner, masks = self._unmasked(value)
            if _is_scores(inner):
                return inner, [*masks, _Mask(seen=seen, value=fill)]
        if not _is_step(scores, *_SUMS) or not _unclamped(scores):
            return scores, []
        for value, mask in (scores.args[:2], scores.args[1::-1]):
            is_mask = isinstance(mask, fx.Node) and self._is_float(mask)
            if self._shape(value) != self._shape(scores) or not is_mask:
                continue
            inner, masks = self._unmasked(value)
            if _is_scores(inner):
                return inner, [*masks, _Mask(value=broadcast_source(mask))]
        return scores, []

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


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """What is added to scores; or, with ``seen``, what is put where that is false."""

    value: Any
    seen: fx.Node | None = None

    def is_known(self, module: fx.GraphModule) -> bool:
        """Tell whether it hides scores by so low a number that their own does not matter."""
        if self.seen is None:
            return True
        fill = constant(module, self.value)
        return fill is not None and fill.numel() == 1 and float(fill) <= _HIDES


def _joined(module: fx.GraphModule, before: fx.Node, masks: Sequence[_Mask]) -> fx.Node | None:
    """Return one mask for all that is added."""
    total: fx.Node | None = None
    for mask in masks:
        value: fx.Node = mask.value
        if mask.seen is not None:
            nothing = add_constant(module, before, f"{before.name}_seen", torch.zeros(1))
            value = call(module, before, aten.where.self, mask.seen, nothing, value)
        total = value if total is None else call(module, before, ops.add, total, value)
    return total


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

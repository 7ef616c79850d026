"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator, integers
from mpq_compile.onnx_import.program import Node

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _reduced(function: Reduction) -> Operator:
    """Axes are the second input; none of them means all, or nothing to do."""

    def compute(node: Node, x: Tensor, axes: Known | None = None) -> Tensor:
        dims = integers(axes)
        if not dims and node.get("noop_with_empty_axes", 0):
            # Each element is its own reduction: a sum of squares is then a square.
            return function(x.unsqueeze(0), [0], False)
        return function(x, dims or list(range(x.dim())), bool(node.get("keepdims", 1)))

    return Operator(function=compute, known=(1,))


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted((d % x.dim() for d in dims), reverse=True):
        x = x.prod(dim, keepdim=keep).to(x.dtype)
    return x


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return x.sum(dims, keepdim=keep, dtype=x.dtype) if dims else x


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if not x.is_floating_point():
        count = np.prod([x.shape[d] for d in dims])
        return torch.div(_sum(x, dims, keep), int(count), rounding_mode="trunc")
    return x.mean(dims, keepdim=keep) if dims else x


def _extreme(function: Callable[..., Tensor]) -> Reduction:
    """``amax`` refuses empty axes, where the result is what is less than anything."""

    def reduce(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if not dims:
            return x
        if 0 not in x.shape:
            return function(x, dims, keepdim=keep)
        if x.dtype == torch.bool:
            least: float | bool = function is torch.amin
        elif x.is_floating_point():
            least = float("-inf") if function is torch.amax else float("inf")
        else:
            limits = torch.iinfo(x.dtype)
            least = limits.min if function is torch.amax else limits.max
        return torch.full_like(x.float().sum(dims, keepdim=keep), least, dtype=x.dtype)

    return reduce


def _first_or_last(function: Callable[..., Tensor]) -> Operator:
    def compute(node: Node, x: Tensor) -> Tensor:
        axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
        if not node.get("select_last_index", 0):
            return function(x, axis, keepdim=keep)
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)

    return Operator(function=compute)


def cumulative_sum(node: Node, x: Tensor, axis: Known) -> Tensor:
    dim = integers(axis)[0]
    backwards, exclusive = node.get("reverse", 0), node.get("exclusive", 0)
    x = x.flip(dim) if backwards else x
    y = x.cumsum(dim, dtype=x.dtype)
    y = y - x if exclusive else y
    return y.flip(dim) if backwards else y


def _host_product(node: Node, x: Known, axes: Known | None = None) -> Known:
    """The number of elements of a shape."""
    dims = tuple(integers(axes)) or None
    return np.asarray(np.prod(x, axis=dims, keepdims=bool(node.get("keepdims", 1))))


REDUCTIONS = {
    "ReduceMean": _reduced(_mean),
    "ReduceSum": _reduced(_sum),
    "ReduceMax": _reduced(_extreme(torch.amax)),
    "ReduceMin": _reduced(_extreme(torch.amin)),
    "ReduceProd": Operator(function=_reduced(_product).function, known=(1,), host=_host_product),
    "ReduceL1": _reduced(lambda x, dims, keep: _sum(x.abs(), dims, keep)),
    "ReduceL2": _reduced(lambda x, dims, keep: _sum(x * x, dims, keep).sqrt().to(x.dtype)),
    "ReduceSumSquare": _reduced(lambda x, dims, keep: _sum(x * x, dims, keep)),
    "ReduceLogSum": _reduced(lambda x, dims, keep: _sum(x, dims, keep).log()),
    "ReduceLogSumExp": _reduced(
        lambda x, dims, keep: x.logsumexp(dims, keepdim=keep) if dims else x
    ),
    "ArgMax": _first_or_last(torch.argmax),
    "ArgMin": _first_or_last(torch.argmin),
    "CumSum": Operator(function=cumulative_sum, known=(1,)),
}

"""Comparisons, logic and choices by element."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator, scalar_or_tensor
from mpq_compile.onnx_import.program import Node


def _compared(
    function: Callable[[Tensor, Tensor], Tensor], host: Callable[[Known, Known], Known]
) -> Operator:
    def compute(node: Node, a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)

    def compute_known(node: Node, a: Known, b: Known) -> Known:
        # What is asked of a free size is answered for the sizes of the trace, which checks it.
        return np.asarray(host(a, b)).astype(bool)

    return Operator(function=compute, host=compute_known)


def where(node: Node, condition: Tensor, a: Known | Tensor, b: Known | Tensor) -> Tensor:
    """A number stays one: masks are written as ``where(mask, 0, -inf)``."""
    left, right = scalar_or_tensor(a, condition), scalar_or_tensor(b, condition)
    if isinstance(left, Tensor) != isinstance(right, Tensor):
        return torch.where(condition, left, right)
    left, right = (_typed(value, side) for value, side in ((left, a), (right, b)))
    return torch.where(condition, left, right)


def _typed(value: object, side: Known | Tensor) -> Tensor:
    """Return a tensor of the type that the file gives the value: two numbers have none."""
    if isinstance(value, Tensor):
        return value
    assert isinstance(side, np.ndarray)
    return torch.from_numpy(np.array(side))


def _where_known(node: Node, condition: Known, a: Known, b: Known) -> Known:
    return np.where(condition.astype(bool), a, b)


def is_nan(node: Node, x: Tensor) -> Tensor:
    return torch.isnan(x)


def is_infinite(node: Node, x: Tensor) -> Tensor:
    signs = [s for s, key in ((1, "detect_positive"), (-1, "detect_negative")) if node.get(key, 1)]
    found = torch.zeros_like(x, dtype=torch.bool)
    for s in signs:
        found = found | (x == s * float("inf"))
    return found


def logical_not(node: Node, x: Tensor) -> Tensor:
    return torch.logical_not(x)


COMPARISONS = {
    "Equal": _compared(torch.eq, np.equal),
    "Greater": _compared(torch.gt, np.greater),
    "GreaterOrEqual": _compared(torch.ge, np.greater_equal),
    "Less": _compared(torch.lt, np.less),
    "LessOrEqual": _compared(torch.le, np.less_equal),
    "And": _compared(torch.logical_and, np.logical_and),
    "Or": _compared(torch.logical_or, np.logical_or),
    "Xor": _compared(torch.logical_xor, np.logical_xor),
    "Not": Operator(function=logical_not, host=lambda node, x: np.logical_not(x)),
    "IsNaN": Operator(function=is_nan),
    "IsInf": Operator(function=is_infinite),
    "Where": Operator(function=where, either=(1, 2), host=_where_known),
}

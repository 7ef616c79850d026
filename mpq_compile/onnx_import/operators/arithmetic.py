"""Arithmetic on elements: of tensors with PyTorch, of sizes with numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator, scalar_or_tensor, tensor
from mpq_compile.onnx_import.program import Node

_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return Operator(function=lambda node, x: function(x))


def _rounded(function: Callable[[Tensor], Tensor], host: Callable[[Known], Known]) -> Operator:
    """Of numbers; sizes that are free are whole already."""
    return Operator(
        function=lambda node, x: function(x),
        host=lambda node, x: x if x.dtype == object else host(x),
    )


def _binary(function: Callable[[Any, Any], Tensor], host: Callable[[Any, Any], Known]) -> Operator:
    """An operator of two tensors; one of them may be a number."""

    def compute(node: Node, a: Known | Tensor, b: Known | Tensor) -> Tensor:
        left, right = scalar_or_tensor(a, b), scalar_or_tensor(b, a)
        return function(left, right)

    def compute_known(node: Node, a: Known, b: Known) -> Known:
        return host(a, b)

    return Operator(function=compute, either=(0, 1), host=compute_known)


def _divided(a: Any, b: Any) -> Tensor:
    """Integers are divided towards zero; one over something is its reciprocal."""
    if isinstance(a, float) and a == 1 and b.is_floating_point():
        return torch.reciprocal(b)
    whole = not any(
        v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, float) for v in (a, b)
    )
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _divided_known(a: Known, b: Known) -> Known:
    if a.dtype == object or b.dtype == object:
        return a // b  # sizes are not negative
    if np.issubdtype(a.dtype, np.integer):
        return np.trunc(np.divide(a, b)).astype(a.dtype)
    return np.divide(a, b)


def power(node: Node, a: Known | Tensor, b: Known | Tensor) -> Tensor:
    """The result has the type of the base."""
    base, exponent = tensor(a), scalar_or_tensor(b, a)
    return torch.pow(base, exponent).to(base.dtype)


def modulo(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


def _modulo_known(node: Node, a: Known, b: Known) -> Known:
    return np.fmod(a, b) if node.get("fmod", 0) else np.mod(a, b)


def _several(function: Callable[[Tensor, Tensor], Tensor], host: Callable | None) -> Operator:
    def compute(node: Node, *values: Tensor) -> Tensor:
        return reduce(function, values)

    def compute_known(node: Node, *values: Known) -> Known:
        assert host is not None
        return reduce(host, values)

    return Operator(function=compute, host=None if host is None else compute_known)


def mean(node: Node, *values: Tensor) -> Tensor:
    return reduce(torch.add, values) / len(values)


def absolute(node: Node, x: Tensor) -> Tensor:
    return torch.abs(x) if x.dtype not in _UNSIGNED else x


def bit_shift(node: Node, x: Tensor, amount: Tensor) -> Tensor:
    wide, places = x.to(torch.int64), amount.to(torch.int64)
    left = node.get("direction") == "LEFT"
    return (wide << places if left else wide >> places).to(x.dtype)


def _host_unary(function: Callable[[Known], Known]) -> Callable[[Node, Known], Known]:
    return lambda node, x: function(x)


ARITHMETIC = {
    "Add": _binary(lambda a, b: a + b, lambda a, b: a + b),
    "Sub": _binary(lambda a, b: a - b, lambda a, b: a - b),
    "Mul": _binary(lambda a, b: a * b, lambda a, b: a * b),
    "Div": _binary(_divided, _divided_known),
    "Pow": Operator(function=power, either=(0, 1)),
    "Mod": Operator(function=modulo, host=_modulo_known),
    "Neg": Operator(function=lambda node, x: -x, host=_host_unary(lambda x: -x)),
    "Abs": Operator(function=absolute, host=_host_unary(np.abs)),
    "Sign": _unary(torch.sign),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Reciprocal": _unary(torch.reciprocal),
    "Floor": _rounded(torch.floor, np.floor),
    "Ceil": _rounded(torch.ceil, np.ceil),
    "Round": _unary(torch.round),
    "Erf": _unary(torch.erf),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Tan": _unary(torch.tan),
    "Asin": _unary(torch.asin),
    "Acos": _unary(torch.acos),
    "Atan": _unary(torch.atan),
    "Sinh": _unary(torch.sinh),
    "Cosh": _unary(torch.cosh),
    "Asinh": _unary(torch.asinh),
    "Acosh": _unary(torch.acosh),
    "Atanh": _unary(torch.atanh),
    "Min": _several(torch.minimum, np.minimum),
    "Max": _several(torch.maximum, np.maximum),
    "Sum": _several(torch.add, np.add),
    "Mean": Operator(function=mean),
    "BitwiseAnd": _several(torch.bitwise_and, None),
    "BitwiseOr": _several(torch.bitwise_or, None),
    "BitwiseXor": _several(torch.bitwise_xor, None),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitShift": Operator(function=bit_shift),
}

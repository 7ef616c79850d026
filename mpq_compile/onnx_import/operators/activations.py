"""Activations, and softmax with its kin."""

from __future__ import annotations

from math import inf, isclose

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator, number, tensor
from mpq_compile.onnx_import.program import Node


def relu(node: Node, x: Tensor) -> Tensor:
    return F.relu(x)


def leaky_relu(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.get("alpha", 0.01))


def clip(
    node: Node, x: Tensor, low: Known | Tensor | None = None, high: Known | Tensor | None = None
) -> Tensor:
    """The upper bound wins where the lower one is above it, as in PyTorch."""
    if low is None and high is None:
        return x
    bounds = [None if bound is None else _bound(bound) for bound in (low, high)]
    if any(isinstance(bound, Tensor) for bound in bounds):
        whole = [None if bound is None else torch.as_tensor(bound) for bound in bounds]
        return torch.clamp(x, *whole)
    kept = [None if bound in (None, -inf, inf) else bound for bound in bounds]
    return x if kept == [None, None] else torch.clamp(x, *kept)  # type: ignore[arg-type]


def _bound(value: Known | Tensor) -> float | Tensor:
    plain = number(value)
    return tensor(value) if plain is None else plain


def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    if isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def hard_swish(node: Node, x: Tensor) -> Tensor:
    return F.hardswish(x)


def sigmoid(node: Node, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def swish(node: Node, x: Tensor) -> Tensor:
    alpha = node.get("alpha", 1.0)
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


def tanh(node: Node, x: Tensor) -> Tensor:
    return torch.tanh(x)


def gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


def elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.get("alpha", 1.0))


def celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.get("alpha", 1.0))


_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.get("alpha", _SELU[0]), node.get("gamma", _SELU[1])
    if all(isclose(a, b, rel_tol=1e-6) for a, b in zip((alpha, gamma), _SELU, strict=True)):
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def prelu(node: Node, x: Tensor, slope: Known | Tensor) -> Tensor:
    plain = number(slope)
    if plain is not None:
        return F.leaky_relu(x, plain)
    return torch.clamp(x, min=0) + tensor(slope) * torch.clamp(x, max=0)


def thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return F.threshold(x, node.get("alpha", 1.0), 0.0)


def softplus(node: Node, x: Tensor) -> Tensor:
    return F.softplus(x)


def softsign(node: Node, x: Tensor) -> Tensor:
    return F.softsign(x)


def mish(node: Node, x: Tensor) -> Tensor:
    return F.mish(x)


def shrink(node: Node, x: Tensor) -> Tensor:
    bias, threshold = node.get("bias", 0.0), node.get("lambd", 0.5)
    shrunk = torch.where(x > threshold, x - bias, torch.zeros_like(x))
    return torch.where(x < -threshold, x + bias, shrunk).to(x.dtype)


def softmax(node: Node, x: Tensor) -> Tensor:
    return torch.softmax(x, node.get("axis", -1))


def log_softmax(node: Node, x: Tensor) -> Tensor:
    return torch.log_softmax(x, node.get("axis", -1))


def hardmax(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", -1)
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1)


ACTIVATIONS = {
    "Relu": Operator(function=relu),
    "LeakyRelu": Operator(function=leaky_relu),
    "Clip": Operator(function=clip, either=(1, 2)),
    "HardSigmoid": Operator(function=hard_sigmoid),
    "HardSwish": Operator(function=hard_swish),
    "Sigmoid": Operator(function=sigmoid),
    "Swish": Operator(function=swish),
    "Tanh": Operator(function=tanh),
    "Gelu": Operator(function=gelu),
    "Elu": Operator(function=elu),
    "Celu": Operator(function=celu),
    "Selu": Operator(function=selu),
    "PRelu": Operator(function=prelu, either=(1,)),
    "ThresholdedRelu": Operator(function=thresholded_relu),
    "Softplus": Operator(function=softplus),
    "Softsign": Operator(function=softsign),
    "Mish": Operator(function=mish),
    "Shrink": Operator(function=shrink),
    "Softmax": Operator(function=softmax),
    "LogSoftmax": Operator(function=log_softmax),
    "Hardmax": Operator(function=hardmax),
}

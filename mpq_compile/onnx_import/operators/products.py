"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.program import Node


def matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha · A B + beta · C."""
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    y = torch.matmul(a, b)
    y = y if alpha == 1 else (y * alpha).to(a.dtype)
    if c is None:
        return y
    return y + (c if beta == 1 else (c * beta).to(a.dtype))


def linear(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: ours, made of MatMul, Gemm and Add by ``linears``."""
    return F.linear(x, weight, bias)


def einsum(node: Node, *operands: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *operands)


PRODUCTS = {
    "MatMul": Operator(function=matmul),
    "Gemm": Operator(function=gemm),
    "Linear": Operator(function=linear),
    "Einsum": Operator(function=einsum),
}

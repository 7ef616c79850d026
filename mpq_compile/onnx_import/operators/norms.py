"""Normalisations at inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.program import Node


def batch_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if node.get("training_mode", 0):
        raise node.unsupported("training_mode 1", "export the model in eval mode")
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


def layer_norm(
    node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    axis, epsilon = node.get("axis", -1), node.get("epsilon", 1e-5)
    shape = x.shape[axis:]
    y = F.layer_norm(x, shape, _spread(scale, shape), _spread(bias, shape), epsilon)
    if not any(node.outputs[1:]):
        return y, None, None
    dims = list(range(x.dim()))[axis:]
    mean = x.mean(dims, keepdim=True)
    spread = torch.rsqrt(x.var(dims, correction=0, keepdim=True) + epsilon)
    return y, mean, spread


def _spread(value: Tensor | None, shape: torch.Size) -> Tensor | None:
    return value if value is None or value.shape == shape else value.expand(shape)


def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    shape = x.shape[node.get("axis", -1) :]
    return F.rms_norm(x, shape, _spread(scale, shape), node.get("epsilon", 1e-5))


def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, node.get("num_groups"), scale, bias, node.get("epsilon", 1e-5))


def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """One group a channel: PyTorch's own form would depend on the batch."""
    return F.group_norm(x, scale.shape[0], scale, bias, node.get("epsilon", 1e-5))


def local_response_norm(node: Node, x: Tensor) -> Tensor:
    settings = (node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0))
    return F.local_response_norm(x, node.get("size"), *settings)


def lp_norm(node: Node, x: Tensor) -> Tensor:
    norm = x.norm(node.get("p", 2), node.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


NORMS = {
    "BatchNormalization": Operator(function=batch_norm),
    "LayerNormalization": Operator(function=layer_norm),
    "RMSNormalization": Operator(function=rms_norm),
    "GroupNormalization": Operator(function=group_norm),
    "InstanceNormalization": Operator(function=instance_norm),
    "LRN": Operator(function=local_response_norm),
    "LpNormalization": Operator(function=lp_norm),
}

"""Bring convolutions, linears, clamps, adds and multiplies to the forms of ``passes.ops``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import add_constant, argument, constant, is_call, replace

aten = torch.ops.aten
INF = float("inf")


@dataclass(frozen=True, kw_only=True)
class Canonicalize:
    """One form for each kind of operator; explicit zero padding moves into the convolution."""

    name: str = "canonicalize"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            rule = _RULES.get(node.target) if node.op == "call_function" else None
            if rule is not None:
                rule(module, node)
        for node in list(module.graph.nodes):
            _absorb_padding(module, node)
        return module


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])


def _conv2d(module: fx.GraphModule, node: fx.Node) -> None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    kernel = constant(module, weight)
    if kernel is None or not _is_constant(module, bias):
        return  # weights computed from the input are no site; the operator stays float
    stride = _pair(argument(node, 3, "stride", 1))
    dilation = _pair(argument(node, 5, "dilation", 1))
    padding = _padding(argument(node, 4, "padding", 0), kernel.shape[2:], dilation)
    groups = argument(node, 6, "groups", 1)
    args = (x, weight, bias, None, stride, padding, dilation, groups, (1, 1), -INF, INF)
    _batched_site(module, node, args)


def _is_constant(module: fx.GraphModule, bias: Any) -> bool:
    return bias is None or constant(module, bias) is not None


def _batched_site(module: fx.GraphModule, node: fx.Node, args: tuple[Any, ...]) -> None:
    """Emit the convolution; an input [C, H, W] gets a batch of one around it."""
    value = node.meta.get("val")
    if value is None or value.dim() == 4:
        replace(module, node, ops.site_conv2d, args)
        return
    with module.graph.inserting_before(node):
        batched = module.graph.call_function(aten.unsqueeze.default, (args[0], 0))
        site = module.graph.call_function(ops.site_conv2d, (batched, *args[1:]))
    replace(module, node, aten.squeeze.dim, (site, 0))


def _padding(padding: Any, kernel: Any, dilation: tuple[int, int]) -> tuple[int, int, int, int]:
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (height // 2, width // 2, height - height // 2, width - width // 2)
    height, width = _pair(padding)
    return (height, width, height, width)


def _conv_transpose2d(module: fx.GraphModule, node: fx.Node) -> None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    kernel = constant(module, weight)
    if kernel is None or not _is_constant(module, bias):
        return
    stride = _pair(argument(node, 3, "stride", 1))
    padding = _pair(argument(node, 4, "padding", 0))
    extra = _pair(argument(node, 5, "output_padding", 0))
    groups: Any = argument(node, 6, "groups", 1)
    dilation = _pair(argument(node, 7, "dilation", 1))
    reach = [d * (k - 1) - p for d, k, p in zip(dilation, kernel.shape[2:], padding, strict=True)]
    pads = (reach[0], reach[1], reach[0] + extra[0], reach[1] + extra[1])
    name = f"{weight.target}_transposed"
    flipped = add_constant(module, node, name, _as_convolution(kernel, groups))
    args = (x, flipped, bias, None, (1, 1), pads, dilation, groups, stride, -INF, INF)
    _batched_site(module, node, args)


def _as_convolution(kernel: Tensor, groups: int) -> Tensor:
    """[C, N/g, KH, KW] of a transposed convolution → [N, C/g, KH, KW], flipped."""
    channels, outputs, height, width = kernel.shape
    blocks = kernel.reshape(groups, channels // groups, outputs, height, width).transpose(1, 2)
    return blocks.reshape(groups * outputs, channels // groups, height, width).flip(2, 3)


def _linear(module: fx.GraphModule, node: fx.Node) -> None:
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    if constant(module, weight) is None or not _is_constant(module, bias):
        return
    replace(module, node, ops.site_linear, (x, weight, bias, None, -INF, INF))


def _matmul(module: fx.GraphModule, node: fx.Node) -> None:
    x, weight = node.args[0], node.args[1]
    _transposed_linear(module, node, x, weight, None)


def _addmm(module: fx.GraphModule, node: fx.Node) -> None:
    bias, x, weight = node.args[:3]
    plain = not node.kwargs and getattr(constant(module, bias), "ndim", 0) == 1
    if plain:
        _transposed_linear(module, node, x, weight, bias)


def _transposed_linear(
    module: fx.GraphModule, node: fx.Node, x: Any, weight: Any, bias: Any
) -> None:
    matrix = constant(module, weight)
    if matrix is None or matrix.dim() != 2:
        return
    name = f"{weight.target}_transposed"
    turned = add_constant(module, node, name, matrix.t().contiguous())
    replace(module, node, ops.site_linear, (x, turned, bias, None, -INF, INF))


def _embedding(module: fx.GraphModule, node: fx.Node) -> None:
    table, ids = node.args[:2]
    if constant(module, table) is not None:
        replace(module, node, ops.site_embedding, (ids, table, None, None))


def _bounded(lo: float, hi: float) -> Callable[[fx.GraphModule, fx.Node], None]:
    def rule(module: fx.GraphModule, node: fx.Node) -> None:
        if _is_float_tensor(node):
            replace(module, node, ops.clamp, (node.args[0], lo, hi))

    return rule


def _clamp(module: fx.GraphModule, node: fx.Node) -> None:
    hardtanh = is_call(node, aten.hardtanh.default)
    first, second = ("min_val", "max_val") if hardtanh else ("min", "max")
    lo = argument(node, 1, first, -1.0 if hardtanh else None)
    hi = argument(node, 2, second, 1.0 if hardtanh else None)
    bounds = (-INF if lo is None else lo, INF if hi is None else hi)
    if _is_float_tensor(node) and all(isinstance(b, (int, float)) for b in bounds):
        args = (node.args[0], float(bounds[0]), float(bounds[1]))  # type: ignore[arg-type]
        replace(module, node, ops.clamp, args)


def _binary(target: Callable[..., Tensor]) -> Callable[[fx.GraphModule, fx.Node], None]:
    def rule(module: fx.GraphModule, node: fx.Node) -> None:
        a, b = node.args[:2]
        values = [isinstance(v, fx.Node) and _is_float_tensor(v) for v in (a, b)]
        if all(values) and argument(node, 2, "alpha", 1) == 1:
            replace(module, node, target, (a, b, -INF, INF))

    return rule


def _is_float_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    # Constants made by an earlier rule carry no value; they are float tensors by construction.
    return value is None or (isinstance(value, Tensor) and value.dtype == torch.float32)


def _stack(module: fx.GraphModule, node: fx.Node) -> None:
    axis = argument(node, 1, "dim", 0)
    with module.graph.inserting_before(node):
        parts = [
            module.graph.call_function(aten.unsqueeze.default, (p, axis)) for p in node.args[0]
        ]
    replace(module, node, aten.cat.default, (parts, axis))


def _pad(module: fx.GraphModule, node: fx.Node) -> None:
    if argument(node, 2, "mode", "constant") == "constant":
        value = argument(node, 3, "value", None) or 0
        replace(module, node, aten.constant_pad_nd.default, (node.args[0], node.args[1], value))


def _view(module: fx.GraphModule, node: fx.Node) -> None:
    # Identities are gone, a copy that made memory contiguous among them: views may not hold.
    replace(module, node, aten.reshape.default, tuple(node.args))


def _absorb_padding(module: fx.GraphModule, node: fx.Node) -> None:
    """conv(pad(x)) → conv with wider padding, where the padding is zeros around H and W."""
    if not is_call(node, ops.site_conv2d):
        return
    pad: Any = node.args[0]
    if not is_call(pad, aten.constant_pad_nd.default):
        return
    source, amounts = pad.args[0], [*pad.args[1], 0, 0][:4]
    spread = tuple(node.args[8]) != (1, 1)
    if set(pad.users) != {node} or not _pads_with_zeros(pad) or spread:
        return
    top, left, bottom, right = node.args[5]
    wider = (top + amounts[2], left + amounts[0], bottom + amounts[3], right + amounts[1])
    node.args = (source, *node.args[1:5], wider, *node.args[6:])


def _pads_with_zeros(pad: fx.Node) -> bool:
    amounts = pad.args[1]
    fits = len(amounts) in (2, 4) and all(isinstance(a, int) and a >= 0 for a in amounts)
    return fits and argument(pad, 2, "value", 0) == 0


def _cast(module: fx.GraphModule, node: fx.Node) -> None:
    """A change of type, on whatever device: the graph is for one."""
    value = node.meta.get("val")
    if value is not None:
        replace(module, node, aten.to.dtype, (node.args[0], value.dtype))


def _clamp_min(module: fx.GraphModule, node: fx.Node) -> None:
    if _is_float_tensor(node) and isinstance(node.args[1], (int, float)):
        replace(module, node, ops.clamp, (node.args[0], float(node.args[1]), INF))


def _matrix_transpose(module: fx.GraphModule, node: fx.Node) -> None:
    replace(module, node, aten.transpose.int, (node.args[0], -2, -1))


def _over_all(target: Any) -> Callable[[fx.GraphModule, fx.Node], None]:
    """A reduction of the whole tensor is one over each of its dimensions."""

    def rule(module: fx.GraphModule, node: fx.Node) -> None:
        value = node.args[0].meta.get("val")
        if value is not None and node.kwargs.get("dtype") is None:
            replace(module, node, target, (node.args[0], list(range(value.dim()))))

    return rule


_RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    aten.conv2d.default: _conv2d,
    aten.conv2d.padding: _conv2d,
    aten.conv_transpose2d.input: _conv_transpose2d,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.embedding.default: _embedding,
    aten.stack.default: _stack,
    aten.pad.default: _pad,
    aten.view.default: _view,
    aten.mT.default: _matrix_transpose,
    aten.relu.default: _bounded(0.0, INF),
    aten.relu6.default: _bounded(0.0, 6.0),
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp_min,
    aten.to.device: _cast,
    aten.to.dtype_layout: _cast,
    aten._to_copy.default: _cast,
    aten.mean.default: _over_all(aten.mean.dim),
    aten.sum.default: _over_all(aten.sum.dim_IntList),
    aten.add.Tensor: _binary(ops.add),
    aten.sub.Tensor: _binary(ops.subtract),
    aten.mul.Tensor: _binary(ops.multiply),
}

"""What is no site in a materialized graph: sums, products, pools, tables, moves, floats.

Each rule returns the new node and the format of its value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, constant, is_call
from mpq_compile.passes.kinds import PAD, TABLE_ENTRIES, Kind
from mpq_compile.passes.materialized import Builder
from mpq_compile.quant import ops as qops
from mpq_compile.quant.multipliers import (
    bounds_of,
    channel_multipliers,
    f32,
    scale_of,
    zero_point_of,
)
from mpq_compile.quant.pooling import pool_windows
from mpq_compile.types import QParams, storage

aten = torch.ops.aten


def add(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    a, b = node.args[:2]
    fmt = builder.stored(node)
    (new_a, qa), (new_b, qb) = builder.as_stored(a), builder.as_stored(b)
    after = builder.qparams(node, fmt)
    signs = (1.0, -1.0 if is_call(node, ops.subtract) else 1.0)
    scales = tuple(
        f32(s * scale_of(q) / scale_of(after)) for s, q in zip(signs, (qa, qb), strict=True)
    )
    zero_points = tuple(zero_point_of(q) for q in (qa, qb, after))
    bounds = bounds_of(after, *node.args[2:])
    args = (new_a, new_b, zero_points, scales, bounds, storage(fmt))
    return builder.graph.call_function(qops.QADD, args), fmt


def multiply(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    a, b = node.args[:2]
    if builder.network.shapes[a.name][0] != builder.network.shapes[node.name][0]:
        a, b = b, a  # the kernel broadcasts its second operand
    fmt = builder.stored(node)
    (new_a, qa), (new_b, qb) = builder.as_stored(a), builder.as_stored(b)
    after = builder.qparams(node, fmt)
    factor = f32(scale_of(qa) * scale_of(qb) / scale_of(after))
    zero_points = tuple(zero_point_of(q) for q in (qa, qb, after))
    bounds = bounds_of(after, *node.args[2:])
    args = (new_a, new_b, zero_points, factor, bounds, storage(fmt))
    return builder.graph.call_function(qops.QMUL, args), fmt


def affine(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    """A depthwise 1×1 convolution whose weights are one: the affine is its epilogue."""
    x, fmt = node.args[0], builder.stored(node)
    new_x, before = builder.as_stored(x)
    after = builder.qparams(node, fmt)
    gamma, beta = (constant(builder.network.module, node.args[i]) for i in (1, 2))
    assert gamma is not None and beta is not None
    scale, shift = channel_multipliers(
        gamma.numpy(), beta.numpy(), scale_of(before), scale_of(after)
    )
    dtype = torch.float32 if before is None else torch.int8
    params = (
        builder.attribute(f"{node.name}_ones", torch.ones(len(gamma), 1, 1, 1, dtype=dtype)),
        builder.attribute(f"{node.name}_multiplier", torch.from_numpy(scale)),
        builder.attribute(f"{node.name}_offset", torch.from_numpy(shift)),
    )
    zero_points = (zero_point_of(before), 0, zero_point_of(after))
    geometry = ((1, 1), (0, 0, 0, 0), (1, 1), len(gamma), (1, 1))
    bounds = bounds_of(after, *node.args[3:])
    args = (new_x, *params, None, *geometry, zero_points, 1.0, bounds, storage(fmt))
    return builder.graph.call_function(qops.QCONV2D, args), fmt


def clamp(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    x, fmt = node.args[0], builder.stored(node)
    new_x, before = builder.as_stored(x)
    after = builder.qparams(node, fmt)
    bounds = bounds_of(after, *node.args[1:])
    return builder.convert(new_x, before, after, storage(fmt), bounds), fmt


def average(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    x, fmt = node.args[0], builder.stored(node)
    new_x, before = builder.as_stored(x)
    after = builder.qparams(node, fmt)
    windows = pool_windows(node, builder.network.shapes[x.name][0])
    factor = scale_of(before) / scale_of(after)
    scale = (factor / windows.divisors.astype(np.float64)).astype(np.float32)
    args = (
        new_x,
        windows.flat_rows,
        windows.flat_columns,
        builder.attribute(f"{node.name}_scale", torch.from_numpy(scale)),
        (zero_point_of(before), zero_point_of(after)),
        bounds_of(after),
        storage(fmt),
    )
    new = builder.graph.call_function(qops.AVG_POOL2D, args)
    if builder.stored(x) == "fp32":  # sums of floats depend on their order
        builder.floats.append(new.name)
    if after is not None:
        builder.codes[new.name] = after
    if len(builder.network.shapes[node.name][0]) == 2:
        new = builder.graph.call_function(aten.flatten.using_ints, (new, 1))
    return new, fmt


def max_pool(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    fmt = builder.stored(node)
    kernel = _pair(node.args[1])
    stride = _pair(argument(node, 2, "stride", ()) or kernel)
    padding = _pair(argument(node, 3, "padding", 0))
    dilation = _pair(argument(node, 4, "dilation", 1))
    ceil_mode = bool(argument(node, 5, "ceil_mode", False))
    args = (builder.operand(node.args[0], fmt), kernel, stride, padding, dilation, ceil_mode)
    return builder.graph.call_function(qops.MAX_POOL2D, args), fmt


def table(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    x, fmt = node.args[0], builder.stored(node)
    if storage(fmt) != "u8":
        return float_op(builder, node)
    source = builder.stored(x) if storage(builder.stored(x)) == "u8" else fmt
    before, after = builder.qparams(x, source), builder.qparams(node, fmt)
    assert before is not None and after is not None
    table = builder.attribute(f"{node.name}_table", unary_table(node, before, after))
    return builder.graph.call_function(qops.LUT, (builder.operand(x, source), table)), fmt


def move(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    fmt = builder.stored(node)
    qparams = builder.qparams(node, fmt)
    args = fx.node.map_arg(node.args, lambda n: _moved(builder, n, fmt))
    if is_call(node, PAD):
        padded = (args[0], args[1], zero_point_of(qparams))
        return builder.graph.call_function(PAD, padded), fmt
    if is_call(node, ops.frames_beside):
        filled = (*args[:8], zero_point_of(qparams))
        return builder.graph.call_function(node.target, filled), fmt
    kwargs = fx.node.map_arg(node.kwargs, lambda n: _moved(builder, n, fmt))
    return builder.graph.call_function(node.target, args, kwargs), fmt


def _moved(builder: Builder, node: fx.Node, fmt: str) -> fx.Node:
    is_tensor = builder.kinds.get(node.name) is not Kind.SHAPE
    return builder.operand(node, fmt) if is_tensor else builder.raw(node)


def pick(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    source, index = node.args
    fmt = next(iter(builder.made[source.name]))
    return builder.graph.call_function(node.target, (builder.raw(source), index)), fmt


def concat(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    fmt = builder.stored(node)
    after = builder.qparams(node, fmt)
    parts = []
    for part in node.args[0]:
        piece, before = builder.operand(part, fmt), builder.qparams(part, fmt)
        same = (scale_of(before), zero_point_of(before)) == (
            scale_of(after),
            zero_point_of(after),
        )
        parts.append(piece if same else builder.convert(piece, before, after, storage(fmt)))
    args = (parts, *node.args[1:])
    return builder.graph.call_function(aten.cat.default, args, dict(node.kwargs)), fmt


def float_op(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    def operand(n: fx.Node) -> fx.Node:
        return builder.operand(n, "fp32") if _is_float(builder, n) else builder.raw(n)

    args = fx.node.map_arg(node.args, operand)
    kwargs = fx.node.map_arg(node.kwargs, operand)
    new = builder.graph.call_function(node.target, args, kwargs)
    builder.floats.append(new.name)
    return new, "fp32"


def _is_float(builder: Builder, node: fx.Node) -> bool:
    entry = builder.network.shapes.get(node.name)
    return entry is None or entry[1] == torch.float32


def shape(builder: Builder, node: fx.Node) -> tuple[fx.Node, str]:
    new = builder.graph.node_copy(node, lambda n: builder.raw(n))
    return new, "fp32"


def unary_table(node: fx.Node, before: QParams, after: QParams) -> Tensor:
    """Return the u8 table of a unary node, computed in float64."""
    codes = torch.arange(TABLE_ENTRIES, dtype=torch.float64).clamp_max(before.spec.qmax)
    real = (codes - before.zero_point) * before.scale
    value = node.target(real, *node.args[1:], **node.kwargs)
    rounded = torch.round(value / after.scale) + after.zero_point
    return rounded.clamp(0, after.spec.qmax).to(torch.uint8)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(values[0]), int(values[-1]))

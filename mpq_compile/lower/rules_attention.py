"""Attention: operands where the linear layers before left them, output where the next reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from mpq_compile.kernels import packing
from mpq_compile.kernels.attention_workload import (
    AttentionWorkload,
    Layout,
    heads_first,
    heads_last,
)
from mpq_compile.kernels.elementwise_workload import RotaryWorkload
from mpq_compile.lower.emit import Value
from mpq_compile.lower.moves import MOVES
from mpq_compile.lower.views import View, dense
from mpq_compile.passes.base import is_call, only_user

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering

aten = torch.ops.aten
_COMPUTE = {"u8": "int8", "bf16": "bf16", "fp32": "fp32"}


def attention(lowering: Lowering, node: fx.Node) -> Value:
    """Call the kernel; where only a transposition reads the result, lower it too."""
    values = [lowering.value(operand) for operand in node.args[:3]]
    views = [_readable(lowering, value) for value in values]
    zero_points, out_scale, bounds, out = node.args[6:10]
    (batch, heads, queries, depth), (keys, columns) = _four(views[0].shape), views[2].shape[-2:]
    given = node.args[3]
    mask = None if given is None else _mask(lowering, given, node.args[0], keys)
    swapped = _swapped(node) if len(views[0].shape) == 4 else None
    layout = heads_last if swapped else heads_first
    workload = AttentionWorkload(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        depth=depth,
        value_depth=columns,
        compute=_COMPUTE[values[0].fmt],  # type: ignore[arg-type]
        out=out,
        causal=bool(node.args[4]),
        q=_layout(views[0]),
        k=_layout(views[1]),
        v=_layout(views[2]),
        output=layout(batch, heads, queries, columns),
        mask=None if mask is None else _layout(mask),
    )
    record = packing.pack_attention(zero_points, node.args[5], out_scale, bounds)
    arguments = [view.var for view in views] + [lowering.emitter.words(record)]
    arguments += [] if mask is None else [mask.var]
    lowering.kernel_of[node.name] = workload.key
    shape = lowering.shape(swapped or node)
    result = lowering.emitter.kernel(workload, arguments, shape, str(out), False)
    if swapped is None:
        return result
    lowering.values[swapped] = result
    return result


def rotary(lowering: Lowering, node: fx.Node) -> Value:
    """Call the kernel of ``ops.rotary``."""
    shape = lowering.shape(node)
    views = [_readable(lowering, lowering.value(operand)) for operand in node.args[:3]]
    batch, heads, rows, depth = shape
    x, cos, sin = (_layout(view) for view in views)
    workload = RotaryWorkload(
        batch=batch, heads=heads, rows=rows, depth=depth, x=x, cos=cos, sin=sin
    )
    lowering.kernel_of[node.name] = workload.key
    return lowering.emitter.kernel(workload, [view.var for view in views], shape, "fp32", False)


def _readable(lowering: Lowering, value: Value) -> View:
    """Return the view of an operand, or of its copy where columns do not lie side by side."""
    view = value.view
    if view.strides[-1] == 1 or view.shape[-1] == 1:
        return view
    return dense(lowering.emitter.logical(value).var, value.shape)


def _mask(lowering: Lowering, node: Any, query: fx.Node, keys: int) -> View:
    """Return the view of a mask, broadcast to as many axes as the query has, and over keys."""
    value = lowering.value(node)
    if value.shape[-1] != keys:
        wide = (*value.shape[:-1], keys)
        value = MOVES[aten.expand.default](lowering.emitter, value, wide, [wide], {})
    view, rank = _readable(lowering, value), len(lowering.shape(query))
    return view.reshaped((1,) * (rank - len(view.shape)) + view.shape) or view


def _four(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return [batch, heads, rows, columns]; three axes have one head."""
    return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])


def _layout(view: View) -> Layout:
    """Return where [batch, heads, rows] lie; axes of one element have no stride."""
    strides = tuple(0 if n == 1 else s for n, s in zip(view.shape, view.strides, strict=True))
    four = strides if len(strides) == 4 else (strides[0], 0, *strides[1:])
    return Layout(size=view.size, strides=four[:3], offset=view.offset)  # type: ignore[arg-type]


def _swapped(node: fx.Node) -> fx.Node | None:
    """Return the transposition of heads and rows that alone reads ``node``, if there is one."""
    user = only_user(node)
    if user is None:
        return None
    if is_call(user, aten.transpose.int):
        axes = sorted(int(axis) % 4 for axis in user.args[1:3])
        return user if axes == [1, 2] else None
    order = [int(axis) % 4 for axis in user.args[1]] if is_call(user, aten.permute.default) else []
    return user if order == [0, 2, 1, 3] else None

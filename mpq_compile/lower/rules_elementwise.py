"""Conversions, sums, products, tables, pooling and concatenation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from mpq_compile.kernels import packing
from mpq_compile.kernels.elementwise_workload import (
    AddWorkload,
    ConcatWorkload,
    ConvertWorkload,
    LutWorkload,
    MulWorkload,
    PoolWorkload,
)
from mpq_compile.lower.emit import Value
from mpq_compile.quant.pooling import pooled_size
from mpq_compile.quant.reference import windows_1d

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def convert(lowering: Lowering, node: fx.Node) -> Value:
    zero_point_in, scale, bounds, zero_point, out = node.args[1:6]
    x = lowering.value(node.args[0])
    record = packing.pack_convert(zero_point_in, scale, bounds, zero_point)
    if not x.nhwc and len(x.shape) == 4 and not x.layout_free and out != "fp32":
        # Quantized 4-D tensors go to convolutions: change the layout on the way.
        return lowering.emitter.transpose_convert(x, "to_nhwc", str(out), record)
    workload = ConvertWorkload(size=x.size, source=x.fmt, target=out)  # type: ignore[arg-type]
    arguments = [x.var, lowering.emitter.words(record)]
    return lowering.emitter.kernel(workload, arguments, x.shape, str(out), x.nhwc)


def add(lowering: Lowering, node: fx.Node) -> Value:
    zero_points, scales, bounds, out = node.args[2:6]
    a, b = _aligned(lowering, lowering.value(node.args[0]), lowering.value(node.args[1]))
    workload = AddWorkload(size=a.size, a=a.fmt, b=b.fmt, out=out)  # type: ignore[arg-type]
    record = lowering.emitter.words(packing.pack_add(zero_points, scales, bounds))
    return lowering.emitter.kernel(workload, [a.var, b.var, record], a.shape, str(out), a.nhwc)


def multiply(lowering: Lowering, node: fx.Node) -> Value:
    zero_points, scale, bounds, out = node.args[2:6]
    a, b = lowering.value(node.args[0]), lowering.value(node.args[1])
    if a.shape == b.shape:
        a, b = _aligned(lowering, a, b)
        batch, pixels, channels, broadcast = 1, 1, a.size, "none"
    else:
        a = lowering.emitter.channels_last(a)
        batch, channels = a.shape[:2]
        pixels, broadcast = a.shape[2] * a.shape[3], "pixel"
    workload = MulWorkload(
        batch=batch,
        pixels=pixels,
        channels=channels,
        a=a.fmt,  # type: ignore[arg-type]
        b=b.fmt,  # type: ignore[arg-type]
        out=out,
        broadcast=broadcast,  # type: ignore[arg-type]
    )
    record = lowering.emitter.words(packing.pack_multiply(zero_points, scale, bounds))
    return lowering.emitter.kernel(workload, [a.var, b.var, record], a.shape, str(out), a.nhwc)


def _aligned(lowering: Lowering, a: Value, b: Value) -> tuple[Value, Value]:
    if len(a.shape) == 4 and (a.nhwc or b.nhwc):
        return lowering.emitter.channels_last(a), lowering.emitter.channels_last(b)
    return a, b


def table(lowering: Lowering, node: fx.Node) -> Value:
    x = lowering.value(node.args[0])
    table = lowering.emitter.array(str(node.args[1].target), lowering.tensor(node.args[1]))
    return lowering.emitter.kernel(LutWorkload(size=x.size), [x.var, table], x.shape, "u8", x.nhwc)


# Pooling and concatenation


def average_pool(lowering: Lowering, node: fx.Node) -> Value:
    rows, columns, scale, zero_points, bounds, out = node.args[1:7]
    spans = [list(zip(flat[::2], flat[1::2], strict=True)) for flat in (rows, columns)]
    record = packing.pack_pool(zero_points[0], bounds, zero_points[1])
    scales = lowering.emitter.words(lowering.tensor(scale))
    return _pool(lowering, node, "avg", spans, (1, 1), str(out), record, scales)


def max_pool(lowering: Lowering, node: fx.Node) -> Value:
    kernel, stride, padding, dilation, ceil_mode = node.args[1:6]
    spans = []
    for axis, size in enumerate(lowering.shape(node.args[0])[2:]):
        k, s, p, d = (pair[axis] for pair in (kernel, stride, padding, dilation))
        out = pooled_size(size, k, s, p, d, bool(ceil_mode))
        spans.append(windows_1d(size, k, s, p, d, out))
    return _pool(lowering, node, "max", spans, dilation, None, None, None)


def _pool(
    lowering: Lowering,
    node: fx.Node,
    kind: str,
    spans: Any,
    step: Any,
    out: str | None,
    record: Any,
    scales: Any,
) -> Value:
    x = lowering.emitter.channels_last(lowering.value(node.args[0]))
    batch, channels, height, width = x.shape
    workload = PoolWorkload(
        kind=kind,  # type: ignore[arg-type]
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        out_height=len(spans[0]),
        out_width=len(spans[1]),
        step=tuple(step),
        source=x.fmt,  # type: ignore[arg-type]
        out=out or x.fmt,  # type: ignore[arg-type]
    )
    lowering.kernel_of[node.name] = workload.key
    arguments = [x.var, lowering.emitter.words(packing.pack_windows(*spans))]
    if kind == "avg":
        arguments += [scales, lowering.emitter.words(record)]
    return lowering.emitter.kernel(workload, arguments, lowering.shape(node), workload.out, True)


def concat(lowering: Lowering, node: fx.Node) -> Value:
    shape = lowering.shape(node)
    axis = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape)
    parts = [lowering.value(part) for part in node.args[0]]
    if len(parts) == 1:
        return parts[0]
    nhwc = any(part.nhwc for part in parts)
    bring = lowering.emitter.channels_last if nhwc else lowering.emitter.logical
    parts = [bring(part) for part in parts]
    order = (0, 2, 3, 1) if nhwc else tuple(range(len(shape)))
    inner = order[order.index(axis) :]
    outer = order[: order.index(axis)]
    workload = ConcatWorkload(
        pixels=int(np.prod([shape[i] for i in outer])),
        channels=tuple(int(np.prod([part.shape[i] for i in inner])) for part in parts),
        dtype=parts[0].fmt,  # type: ignore[arg-type]
    )
    arguments = [part.var for part in parts]
    return lowering.emitter.kernel(workload, arguments, shape, parts[0].fmt, nhwc)

"""Materialized operators that are no sites: sums, products, tables, pools, attention, affines."""

from __future__ import annotations

from math import inf

import numpy as np
from torch import fx

from mpq_compile.integrations.qdq.sites import Graph
from mpq_compile.integrations.qdq.writer import Writer
from mpq_compile.passes import ops
from mpq_compile.passes.base import argument, constant, is_call
from mpq_compile.quant.multipliers import scale_of
from mpq_compile.types import QParams, QSpec

Spans = list[tuple[int, int]]
_WEIGHTS = QParams(
    spec=QSpec(bits=8, signed=False, symmetric=False), scale=float(np.float32(1 / 255))
)


def convert(graph: Graph, node: fx.Node) -> str:
    """A change of format is what the driver stores; a clamp of the network stands before it."""
    origin = graph.origin(node)
    lo, hi = (-inf, inf) if origin is None else origin.args[1:3]
    return graph.writer.clip(graph.value(node.args[0]).name, lo, hi, into=node.name)


def add(graph: Graph, node: fx.Node) -> str:
    return _binary(graph, node, "Sub" if is_call(graph.origin(node), ops.subtract) else "Add")


def multiply(graph: Graph, node: fx.Node) -> str:
    return _binary(graph, node, "Mul")


def _binary(graph: Graph, node: fx.Node, kind: str) -> str:
    a, b = (graph.value(operand).name for operand in node.args[:2])
    origin = graph.origin(node)
    assert origin is not None
    result = graph.writer.op(kind, a, b, into=node.name)
    return graph.writer.clip(result, *(origin.args[2:] or (-inf, inf)), into=node.name)


def affine(graph: Graph, node: fx.Node) -> str:
    """A batch norm that stands alone: x · γ + β by channel."""
    origin, writer = graph.origin(node), graph.writer
    assert origin is not None
    columns = []
    for operand in origin.args[1:3]:
        values = constant(graph.source.network.module, operand)
        assert values is not None
        columns.append(writer.constant(values.float().numpy().reshape(-1, 1, 1), node.name))
    scaled = writer.op("Mul", graph.value(node.args[0]).name, columns[0], into=f"{node.name}_mul")
    shifted = writer.op("Add", scaled, columns[1], into=node.name)
    return writer.clip(shifted, *(origin.args[3:] or (-inf, inf)), into=node.name)


def max_pool(graph: Graph, node: fx.Node) -> str:
    """``ceil_mode`` is said by padding: the rules for the last window differ between versions."""
    x, result = graph.value(node.args[0]), graph.result(node)
    kernel, stride, padding, dilation, ceil_mode = node.args[1:6]
    ends = list(padding)
    if ceil_mode:
        sizes = zip(x.shape[2:], result.shape[2:], kernel, stride, padding, dilation, strict=True)
        ends = [max((n - 1) * s + d * (k - 1) + 1 - size - p, 0) for size, n, k, s, p, d in sizes]
    return graph.writer.op(
        "MaxPool",
        x.name,
        into=node.name,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *ends],
        dilations=list(dilation),
    )


def average_pool(graph: Graph, node: fx.Node) -> str:
    """A mean, an AveragePool, or, for windows of several sizes, products with their indicators."""
    x, writer = graph.value(node.args[0]), graph.writer
    rows, columns = (list(zip(s[::2], s[1::2], strict=True)) for s in node.args[1:3])
    cells = _cells(graph, node)
    counted = np.outer([b - a for a, b in rows], [b - a for a, b in columns])
    plain = np.array_equal(cells, counted)
    if plain and (rows, columns) == ([(0, x.shape[2])], [(0, x.shape[3])]):
        return writer.op("GlobalAveragePool", x.name, into=node.name)
    down, across = _regular(rows), _regular(columns)
    if plain and down is not None and across is not None:
        kernel, strides = ([down[i], across[i]] for i in range(2))
        return writer.op(
            "AveragePool", x.name, into=node.name, kernel_shape=kernel, strides=strides
        )
    left = writer.constant(indicator(rows, x.shape[2]), f"{node.name}_rows")
    right = writer.constant(indicator(columns, x.shape[3]).T, f"{node.name}_columns")
    sums = writer.op("MatMul", left, x.name, into=f"{node.name}_down")
    sums = writer.op("MatMul", sums, right, into=f"{node.name}_sums")
    return writer.op("Div", sums, writer.constant(cells.astype(np.float32)), into=node.name)


def _cells(graph: Graph, node: fx.Node) -> np.ndarray:
    """Return the divisor of each output, float64 [OH, OW]: whole but for an override."""
    codes = graph.source.codes
    factor = scale_of(codes.get(node.args[0].name)) / scale_of(codes.get(node.name))
    stored = constant(graph.source.module, node.args[3])
    assert stored is not None
    cells = factor / stored.numpy().astype(np.float64)
    whole = np.rint(cells)
    return np.where(np.isclose(cells, whole, rtol=1e-6), whole, cells)


def _regular(spans: Spans) -> tuple[int, int] | None:
    """Return size and stride of windows that are all alike and begin at 0, or None."""
    size, starts = spans[0][1] - spans[0][0], [a for a, _ in spans]
    stride = starts[1] - starts[0] if len(starts) > 1 else size
    alike = spans == [(i * stride, i * stride + size) for i in range(len(spans))]
    return (size, stride) if alike else None


def indicator(spans: Spans, size: int) -> np.ndarray:
    """Return which cells each window holds, float32 [windows, size]."""
    cells = np.arange(size)
    return np.array([(cells >= a) & (cells < b) for a, b in spans], np.float32)


def attention(graph: Graph, node: fx.Node) -> str:
    """softmax(q · kᵀ · scale + mask) · v; between codes, the softmax is rounded as there."""
    origin, writer, stem = graph.origin(node), graph.writer, node.name
    assert origin is not None
    q, k, v = (graph.value(operand) for operand in node.args[:3])
    scale = argument(origin, 6, "scale") or q.shape[-1] ** -0.5
    order = [*range(k.rank - 2), k.rank - 1, k.rank - 2]
    keys = writer.op("Transpose", k.name, into=f"{stem}_keys", perm=order)
    scores = writer.op("MatMul", q.name, keys, into=f"{stem}_products")
    scores = writer.op("Mul", scores, writer.scalar(float(scale)), into=f"{stem}_scores")  # type: ignore[arg-type]
    for mask in _masks(graph, node, (q.shape[-2], k.shape[-2])):
        scores = writer.op("Add", scores, mask, into=f"{stem}_masked")
    if node.args[0].name not in graph.source.codes:
        weights = writer.op("Softmax", scores, into=f"{stem}_weights", axis=-1)
        return writer.op("MatMul", weights, v.name, into=stem)
    weights, total = _rounded_weights(writer, scores, stem)
    summed = writer.op("MatMul", weights, v.name, into=f"{stem}_sum")
    return writer.op("Div", summed, total, into=stem)


def _rounded_weights(writer: Writer, scores: str, stem: str) -> tuple[str, str]:
    """Return exp(s − max s) rounded to eight bits, and its sums: softmax as integers compute it.

    The greatest weight of a row has the code 255, however flat the row; rows that are masked
    entirely give zeros.
    """
    last, lowest = writer.sizes(-1), writer.scalar(float(np.finfo(np.float32).min))
    most = writer.op("ReduceMax", scores, last, into=f"{stem}_max", keepdims=1)
    most = writer.op("Max", most, lowest, into=f"{stem}_highest")
    powers = writer.op(
        "Exp", writer.op("Sub", scores, most, into=f"{stem}_gap"), into=f"{stem}_exp"
    )
    weights = writer.quantized(powers, _WEIGHTS, f"{stem}_weights")
    total = writer.op("ReduceSum", weights, last, into=f"{stem}_total", keepdims=1)
    return weights, writer.op("Max", total, writer.scalar(_WEIGHTS.scale), into=f"{stem}_divisor")


def _masks(graph: Graph, node: fx.Node, size: tuple[int, int]) -> list[str]:
    """Return what is added to the scores."""
    masks = [] if node.args[3] is None else [graph.value(node.args[3]).name]
    if node.args[4]:
        hidden = np.where(np.tri(*size, dtype=bool), 0.0, -inf).astype(np.float32)
        masks.append(graph.writer.constant(hidden, "causal"))
    return masks

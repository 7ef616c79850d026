"""Integer nodes that compute what the device computes, in its order: equal to it bit for bit.

The accumulator comes from ConvInteger or MatMulInteger, and each float32 operation of the epilogue
is a node of its own, so that no runtime rounds elsewhere: ((f32(acc) ⊗ S) ⊕ B) ⊕ (f32(r − z) ⊗ R),
a clamp, QuantizeLinear with a scale of one. What has no such form here stays as it is without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, fx

from mpq_compile.integrations.qdq import sites
from mpq_compile.integrations.qdq.logic import LOGIC
from mpq_compile.integrations.qdq.moves import MOVES
from mpq_compile.integrations.qdq.tensors import indicator
from mpq_compile.integrations.qdq.writer import Writer
from mpq_compile.passes import ops
from mpq_compile.passes.base import constant
from mpq_compile.quant import ops as qops

aten = torch.ops.aten

# Weights are multiplied as unsigned codes: the products of signed ones are summed in 16 bits on x86
# processors without VNNI.
_MIDDLE = 128
# Up to here float32 holds every integer.
_LARGEST_SUM = 2**24


class Graph(sites.Graph, Protocol):
    """What these rules ask of the export beyond that."""

    def codes(self, node: fx.Node) -> str | None: ...


Rule = Callable[[Graph, fx.Node], "str | None"]


def written(graph: Graph, node: fx.Node) -> str | None:
    """Write a node in its exact form; return its tensor in float32, or None where it has none."""
    rule = RULES.get(node.target)
    return None if rule is None else rule(graph, node)


def _constant(graph: Graph, node: Any) -> Tensor:
    value = constant(graph.source.module, node)
    assert value is not None
    return value


def _centered(graph: Graph, node: fx.Node, zero_point: int) -> str:
    """Return float32 (x − zero point) of codes; a float tensor is what it is."""
    codes, writer = graph.codes(node), graph.writer
    if codes is None:
        return graph.value(node).name
    real = writer.op("Cast", codes, into=f"{codes}_float", to=TensorProto.FLOAT)
    return writer.op("Sub", real, writer.scalar(float(zero_point)), into=f"{codes}_centered")


def _stored(
    graph: Graph, node: fx.Node, v: str, bounds: tuple[float, float], zero_point: int, out: str
) -> str:
    """Write the clamp, and the form that the result is stored in."""
    writer, stem = graph.writer, node.name
    v = writer.clip(v, *bounds, into=stem)
    if out == "bf16":
        return writer.rounded_to_bf16(v, stem)
    if out == "fp32":
        return v
    point = writer.constant(np.uint8(zero_point), "zero_point")
    codes = writer.op("QuantizeLinear", v, writer.scalar(1.0), point, into=f"{stem}_codes")
    return writer.dequantized(codes, graph.source.codes[node.name], stem)


def _epilogue(graph: Graph, node: fx.Node, acc: str, column: tuple[int, ...]) -> str:
    """Write all that follows a product; arguments of both kinds of product end alike."""
    scale, bias, residual = node.args[2:5]
    zero_points, factor, bounds, out = node.args[-4:]
    writer, stem = graph.writer, node.name
    scales = writer.constant(_constant(graph, scale).numpy().reshape(column), f"{stem}_scale")
    biases = writer.constant(_constant(graph, bias).numpy().reshape(column), f"{stem}_bias")
    v = writer.op("Cast", acc, into=f"{stem}_sum", to=TensorProto.FLOAT)
    v = writer.op("Mul", v, scales, into=f"{stem}_scaled")
    v = writer.op("Add", v, biases, into=f"{stem}_biased")
    if residual is not None:
        other = _centered(graph, residual, zero_points[1])
        other = writer.op("Mul", other, writer.scalar(factor), into=f"{stem}_residual")
        v = writer.op("Add", v, other, into=f"{stem}_added")
    return _stored(graph, node, v, tuple(bounds), zero_points[2], out)


def _unsigned(graph: Graph, node: fx.Node, weight: Tensor, transposed: bool = False) -> str:
    """Return the codes of a weight as UINT8 around ``_MIDDLE``, stored at their own width."""
    writer, record = graph.writer, graph.source.records.get(node.name)
    bits = 8 if record is None else record.candidate.weight_bits
    stem = f"{node.name if record is None else record.site.path}.weight"
    codes = weight.numpy().T if transposed else weight.numpy()
    packed = writer.packed(codes, bits, f"{stem}_codes")
    words = writer.op("Cast", packed, into=f"{stem}_words", to=TensorProto.INT32)
    moved = writer.op("Add", words, writer.constant(np.int32(_MIDDLE)), into=f"{stem}_moved")
    return writer.op("Cast", moved, into=f"{stem}_unsigned", to=TensorProto.UINT8)


def _points(writer: Writer, zero_point: int) -> list[str]:
    return [writer.constant(np.uint8(value), "zero_point") for value in (zero_point, _MIDDLE)]


def _integer_weight(graph: Graph, node: fx.Node) -> Tensor | None:
    """Return a weight of codes with one scale a channel that meets codes; None for any other."""
    weight, scale = _constant(graph, node.args[1]), _constant(graph, node.args[2])
    meets = graph.codes(node.args[0]) is not None
    return weight if weight.dtype == torch.int8 and scale.dim() == 1 and meets else None


def conv2d(graph: Graph, node: fx.Node) -> str | None:
    stride, padding, dilation, groups, spread = node.args[5:10]
    weight = _integer_weight(graph, node)
    if weight is None or tuple(spread) != (1, 1) or min(padding) < 0:
        return None
    codes = graph.codes(node.args[0])
    assert codes is not None
    acc = graph.writer.op(
        "ConvInteger",
        codes,
        _unsigned(graph, node, weight),
        *_points(graph.writer, node.args[10][0]),
        into=f"{node.name}_products",
        strides=list(stride),
        pads=[int(amount) for amount in padding],
        dilations=list(dilation),
        group=int(groups),
    )
    return _epilogue(graph, node, acc, (-1, 1, 1))


def linear(graph: Graph, node: fx.Node) -> str | None:
    weight = _integer_weight(graph, node)
    if weight is None:
        return None
    codes, points = graph.codes(node.args[0]), _points(graph.writer, node.args[5][0])
    assert codes is not None
    unsigned = _unsigned(graph, node, weight, transposed=True)
    into = f"{node.name}_products"
    acc = graph.writer.op("MatMulInteger", codes, unsigned, *points, into=into)
    return _epilogue(graph, node, acc, (-1,))


def add(graph: Graph, node: fx.Node) -> str:
    a, b, zero_points, scales, bounds, out = node.args
    writer, stem = graph.writer, node.name
    parts = [
        writer.op("Mul", _centered(graph, x, point), writer.scalar(scale), into=f"{stem}_part")
        for x, point, scale in zip((a, b), zero_points, scales, strict=False)
    ]
    v = writer.op("Add", *parts, into=f"{stem}_sum")
    return _stored(graph, node, v, tuple(bounds), zero_points[2], out)


def multiply(graph: Graph, node: fx.Node) -> str:
    a, b, zero_points, scale, bounds, out = node.args
    writer, stem = graph.writer, node.name
    pair = [_centered(graph, x, point) for x, point in zip((a, b), zero_points, strict=False)]
    product = writer.op("Mul", *pair, into=f"{stem}_product")
    v = writer.op("Mul", product, writer.scalar(scale), into=f"{stem}_scaled")
    return _stored(graph, node, v, tuple(bounds), zero_points[2], out)


def convert(graph: Graph, node: fx.Node) -> str:
    x, point, scale, bounds, zero_point, out = node.args
    v = _centered(graph, x, point)
    v = graph.writer.op("Mul", v, graph.writer.scalar(scale), into=f"{node.name}_scaled")
    return _stored(graph, node, v, tuple(bounds), zero_point, out)


def average_pool(graph: Graph, node: fx.Node) -> str | None:
    """Sums of codes are products with the indicators of windows, where float32 holds them."""
    x, *spans, scale, zero_points, bounds, out = node.args
    rows, columns = (list(zip(s[::2], s[1::2], strict=True)) for s in spans)
    cells = max(b - a for a, b in rows) * max(b - a for a, b in columns)
    if graph.codes(x) is None or cells * 255 > _LARGEST_SUM:
        return None
    writer, stem, size = graph.writer, node.name, graph.value(x).shape
    left = writer.constant(indicator(rows, size[2]), f"{stem}_rows")
    right = writer.constant(indicator(columns, size[3]).T, f"{stem}_columns")
    v = _centered(graph, x, zero_points[0])
    v = writer.op("MatMul", left, v, into=f"{stem}_down")
    v = writer.op("MatMul", v, right, into=f"{stem}_sums")
    factors = writer.constant(_constant(graph, scale).numpy(), f"{stem}_scale")
    v = writer.op("Mul", v, factors, into=f"{stem}_scaled")
    return _stored(graph, node, v, tuple(bounds), zero_points[1], out)


def table(graph: Graph, node: fx.Node) -> str | None:
    """The table itself, which codes look up."""
    codes, stored = graph.codes(node.args[0]), _constant(graph, node.args[1])
    if codes is None or stored.dtype not in (torch.uint8, torch.float32):
        return None
    writer, stem = graph.writer, node.name
    places = writer.op("Cast", codes, into=f"{stem}_places", to=TensorProto.INT32)
    found = writer.constant(stored.numpy(), f"{stem}_table")
    into = f"{stem}_codes" if stored.dtype == torch.uint8 else stem
    found = writer.op("Gather", found, places, into=into, axis=0)
    if stored.dtype == torch.float32:
        return found
    return writer.dequantized(found, graph.source.codes[node.name], stem)


RULES: Mapping[Any, Rule] = {
    qops.QCONV2D: conv2d,
    qops.QLINEAR: linear,
    qops.QADD: add,
    qops.QMUL: multiply,
    qops.CONVERT: convert,
    qops.AVG_POOL2D: average_pool,
    qops.LUT: table,
}

# What rounds among operators that otherwise do not.
_ROUNDING = {
    aten.remainder.Scalar, aten.remainder.Tensor, aten.cumsum.default, aten.diff.default,
    aten.upsample_bilinear2d.vec,
}  # fmt: skip
# Operators that choose, move or compare values: every runtime agrees with the device on them.
AGREED = {
    *(MOVES.keys() - _ROUNDING),
    *(LOGIC.keys() - _ROUNDING),
    aten.relu.default, aten.abs.default, aten.neg.default, aten.floor.default, aten.sign.default,
    aten.threshold.default, aten.hardshrink.default, aten.amax.default, aten.amin.default,
    aten.max.dim, aten.argmax.default, aten.argmin.default, aten.embedding.default, ops.clamp,
    qops.MAX_POOL2D,
}  # fmt: skip

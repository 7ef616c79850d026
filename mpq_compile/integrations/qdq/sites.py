"""Sites: weights as packed integers behind DequantizeLinear, one product, residual, clamp."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx

from mpq_compile.integrations.qdq.shapes import Sizes
from mpq_compile.integrations.qdq.values import Value
from mpq_compile.integrations.qdq.writer import Writer
from mpq_compile.passes.base import is_call
from mpq_compile.passes.materialized import Materialized, SiteRecord
from mpq_compile.quant import ops as qops
from mpq_compile.quant.multipliers import ROW_PEAK
from mpq_compile.quant.weights import QuantizedWeight

Arranged = Callable[[np.ndarray], np.ndarray]
# An int32 bias that is larger could overflow in its sum with the products.
_LARGEST_BIAS = 2**30


class Graph(Protocol):
    """What a rule may ask of the export."""

    writer: Writer
    sizes: Sizes
    source: Materialized
    int32_biases: bool

    def value(self, node: fx.Node) -> Value: ...

    def result(self, node: fx.Node) -> Value: ...

    def origin(self, node: fx.Node) -> fx.Node | None: ...


def conv2d(graph: Graph, node: fx.Node) -> str:
    """Write a convolution, or the transposed one that it stands for."""
    record, writer = graph.source.records[node.name], graph.writer
    stride, padding, dilation, groups, spread = node.args[5:10]
    attributes: dict[str, Any] = {"strides": list(stride), "dilations": list(dilation)}
    attributes["group"] = int(groups)
    x, bias = graph.value(node.args[0]).name, _codes_of_bias(graph, node, record)
    optional = [] if bias is None else [bias]
    if tuple(spread) != (1, 1):
        geometry = _transposed_geometry(record, padding, dilation, spread)
        weight = _transposed_weight(writer, record, int(groups))
        result = writer.op(
            "ConvTranspose", x, weight, *optional, into=node.name, group=int(groups), **geometry
        )
        return _finished(graph, node, result, bias)
    pads = [int(amount) for amount in padding]
    if min(pads) < 0:
        x = writer.op("Pad", x, writer.sizes(0, 0, *pads[:2], 0, 0, *pads[2:]), into=f"{x}_cropped")
        pads = [0, 0, 0, 0]
    weight = _weight(writer, record)
    result = writer.op("Conv", x, weight, *optional, into=node.name, pads=pads, **attributes)
    return _finished(graph, node, result, bias)


def linear(graph: Graph, node: fx.Node) -> str:
    """Write a linear layer: Gemm where integer kernels read it, else MatMul and Add."""
    record, writer = graph.source.records[node.name], graph.writer
    x = graph.value(node.args[0])
    if x.rank == 2 and _is_integer(graph, node, record):
        bias = _codes_of_bias(graph, node, record)
        optional = [] if bias is None else [bias]
        weight = _weight(writer, record)
        result = writer.op("Gemm", x.name, weight, *optional, into=node.name, transB=1)
        return _finished(graph, node, result, bias)
    result = writer.op("MatMul", x.name, _weight(writer, record, transposed=True), into=node.name)
    return _finished(graph, node, result, None)


def embedding(graph: Graph, node: fx.Node) -> str:
    """Write a lookup: Gather from the table, whose rows have scales of their own."""
    table = _weight(graph.writer, graph.source.records[node.name])
    return graph.writer.op("Gather", table, graph.value(node.args[0]).name, into=node.name, axis=0)


def quantize_rows(graph: Graph, node: fx.Node) -> list[str]:
    """Write the rounding of each row by its own largest magnitude, in float: codes · scale."""
    writer, x, stem = graph.writer, graph.value(node.args[0]).name, node.name
    magnitude = writer.op("Abs", x, into=f"{stem}_magnitude")
    peak = writer.op("ReduceMax", magnitude, writer.sizes(-1), into=f"{stem}_max", keepdims=1)
    peak = writer.op("Max", peak, writer.scalar(ROW_PEAK), into=f"{stem}_peak")
    scale = writer.op("Div", peak, writer.scalar(127.0), into=f"{stem}_scale")
    codes = writer.op("Div", x, scale, into=f"{stem}_unrounded")
    codes = writer.op("Round", codes, into=f"{stem}_codes")
    return [writer.op("Mul", codes, scale, into=f"{stem}_real"), scale]


def _finished(graph: Graph, node: fx.Node, result: str, bias: str | None) -> str:
    """Write the bias that the product has not added, the residual and the clamp."""
    record, writer = graph.source.records[node.name], graph.writer
    if record.has_bias and bias is None:
        column = (-1, 1, 1) if is_call(node, qops.QCONV2D) else (-1,)
        added = writer.constant(record.bias.numpy().reshape(column), f"{record.site.path}.bias")
        result = writer.op("Add", result, added, into=f"{node.name}_biased")
    residual = node.args[5 if is_call(node, qops.QLINEAR_ROWS) else 4]
    if residual is not None:
        added = graph.value(residual).name
        result = writer.op("Add", result, added, into=f"{node.name}_sum")
    origin = graph.origin(node)
    assert origin is not None
    return writer.clip(result, *origin.args[-2:], into=node.name)


# Weights


def _weight(writer: Writer, record: SiteRecord, transposed: bool = False) -> str:
    """Return the float32 weight of a site, [N, ...]; of a linear one, [K, N] if ``transposed``."""
    return _stored(writer, record, np.transpose if transposed else np.asarray, transposed)


def _stored(
    writer: Writer, record: SiteRecord, arranged: Arranged, transposed: bool = False
) -> str:
    stem, weight = f"{record.site.path}.weight", record.weight
    if isinstance(weight, QuantizedWeight):
        codes, scale = arranged(weight.codes.numpy()), arranged(weight.scale.numpy())
        packed = writer.packed(codes, weight.spec.bits, f"{stem}_codes")
        scales = writer.constant(scale, f"{stem}_scale")
        axis = {"axis": int(transposed)}
        if weight.spec.group_size is not None:
            axis = {"axis": int(not transposed), "block_size": weight.spec.group_size}
        return writer.op("DequantizeLinear", packed, scales, into=stem, **axis)
    if weight.dtype == torch.bfloat16:
        bits = weight.contiguous().view(torch.int16).numpy().view(np.uint16)
        return writer.bf16(arranged(bits), stem)
    return writer.constant(arranged(weight.numpy()), stem)


def _shape(record: SiteRecord) -> tuple[int, ...]:
    """Return the shape of a weight as the products read it, [N, C/groups, ...]."""
    weight = record.weight
    return tuple((weight.codes if isinstance(weight, QuantizedWeight) else weight).shape)


def _blocks(record: SiteRecord) -> bool:
    return isinstance(record.weight, QuantizedWeight) and record.weight.scale.dim() == 2


def _transposed_weight(writer: Writer, record: SiteRecord, groups: int) -> str:
    """Return [C, N/groups, KH, KW], turned round in the plane, of a weight [N, C/groups, ...].

    Scales belong to output channels, of which there are N / groups in the shape that ConvTranspose
    reads, so the weight is dequantized first and then brought to it.
    """

    def turned(array: np.ndarray) -> np.ndarray:
        return array[:, :, ::-1, ::-1] if array.ndim == 4 else array

    stem = f"{record.site.path}.weight_turned"
    real = _stored(writer, record, turned)
    outputs, inputs, *kernel = _shape(record)
    split = writer.sizes(groups, outputs // groups, inputs, *kernel)
    parts = writer.op("Reshape", real, split, into=f"{stem}_groups")
    parts = writer.op("Transpose", parts, into=f"{stem}_swapped", perm=[0, 2, 1, 3, 4])
    whole = writer.sizes(groups * inputs, outputs // groups, *kernel)
    return writer.op("Reshape", parts, whole, into=stem)


def _transposed_geometry(
    record: SiteRecord, padding: Sequence[int], dilation: Sequence[int], spread: Sequence[int]
) -> dict[str, Any]:
    """Return the attributes of the ConvTranspose that a convolution over spread cells is."""
    kernel = _shape(record)[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before = [r - int(p) for r, p in zip(reach, padding[:2], strict=True)]
    after = [r - int(p) for r, p in zip(reach, padding[2:], strict=True)]
    extra = [max(b - a, 0) for b, a in zip(before, after, strict=True)]
    return {
        "strides": list(spread),
        "dilations": list(dilation),
        "pads": [*before, *(a + e for a, e in zip(after, extra, strict=True))],
        "output_padding": extra,
    }


# Biases


def _codes_of_bias(graph: Graph, node: fx.Node, record: SiteRecord) -> str | None:
    """Return the bias of a site as int32 in units of the accumulator, where that is asked for.

    None where there is none, where there are no integer products with one scale a channel, or
    where int32 is too narrow: it is then added in float32, as the deployed network does, by a node
    of its own, because ONNX Runtime makes int32 of any bias that a Conv or Gemm between codes has.
    """
    if not graph.int32_biases or not record.has_bias or not _is_integer(graph, node, record):
        return None
    assert isinstance(record.weight, QuantizedWeight)
    scale = record.weight.scale.numpy().astype(np.float64) * record.input_scale
    codes = np.rint(record.bias.numpy() / scale.astype(np.float32).astype(np.float64))
    if np.abs(codes).max() > _LARGEST_BIAS:
        return None
    stem = f"{record.site.path}.bias"
    stored = graph.writer.constant(codes.astype(np.int32), f"{stem}_codes")
    units = graph.writer.constant(scale.astype(np.float32), f"{stem}_scale")
    return graph.writer.op("DequantizeLinear", stored, units, into=stem, axis=0)


def _is_integer(graph: Graph, node: fx.Node, record: SiteRecord) -> bool:
    """Tell whether codes meet codes that have one scale a channel."""
    per_channel = isinstance(record.weight, QuantizedWeight) and not _blocks(record)
    return per_channel and node.args[0].name in graph.source.codes

"""Materialized FX graph → Relax module: one rule an operator, layouts chosen on the way."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from tvm import relax

from mpq_compile.capture import source_line
from mpq_compile.errors import LoweringError, UnsupportedOpError
from mpq_compile.kernels import packing
from mpq_compile.kernels.elementwise_workload import (
    AddWorkload,
    ConcatWorkload,
    ConvertWorkload,
    LutWorkload,
    MulWorkload,
    PoolWorkload,
)
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.emit import Emitter, Value
from mpq_compile.lower.float_ops import embed, import_float_op
from mpq_compile.lower.moves import MOVES
from mpq_compile.lower.parameters import Recipe, StoredSite, stored_arrays
from mpq_compile.lower.workloads import conv_workload, linear_workload
from mpq_compile.passes.base import constant, value_shapes
from mpq_compile.passes.formats import RESHAPES
from mpq_compile.passes.materialize import Materialized, SiteRecord
from mpq_compile.quant import ops as qops
from mpq_compile.quant.pooling import pooled_size
from mpq_compile.quant.reference import windows_1d
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.types import Candidate

aten = torch.ops.aten
_STORAGE = {
    torch.uint8: "u8",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A Relax module and all that its parameters are made of.

    Args:
        module: ``main(inputs…, parameters)`` over flat tensors.
        recipes: One for each parameter, in order.
        sites: Stored weights by name.
        arrays: What the artifact stores, by name.
        kernel_of: Site id to the key of the kernel that computes it.
        input_shapes, input_dtypes, output_shapes: What a caller passes and gets.
    """

    module: Any
    recipes: Sequence[Recipe]
    sites: Mapping[str, StoredSite]
    arrays: Mapping[str, np.ndarray]
    kernel_of: Mapping[str, str]
    input_shapes: Sequence[tuple[int, ...]]
    input_dtypes: Sequence[str]
    output_shapes: Sequence[tuple[int, ...]]


def lower(
    materialized: Materialized, inputs: Sequence[Tensor], tier: Tier, threads: int
) -> Lowered:
    """Lower a materialized graph for the shapes of ``inputs``.

    Raises:
        LoweringError: An operator has no rule; names the node and its source line.
    """
    return _Lowering(materialized, inputs, tier, threads).run()


class _Lowering:
    """State of one lowering: what stands for each node, and what is stored."""

    def __init__(
        self, materialized: Materialized, inputs: Sequence[Tensor], tier: Tier, threads: int
    ) -> None:
        self.graph = materialized.module
        self.records = materialized.records
        self.inputs = inputs
        self.emitter = Emitter(tier, threads)
        self.shapes = value_shapes(self.graph, inputs)
        self.integers = _integer_values(self.graph, inputs)
        self.values: dict[fx.Node, Any] = {}
        self.sites: dict[str, StoredSite] = {}
        self.kernel_of: dict[str, str] = {}

    def run(self) -> Lowered:
        nodes = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        variables = []
        for node, example in zip(nodes, self.inputs, strict=True):
            fmt = _STORAGE[example.dtype]
            kind = relax.TensorType((example.numel(),), str(example.dtype).removeprefix("torch."))
            variables.append(relax.Var(node.name, kind))
            self.values[node] = Value(var=variables[-1], shape=tuple(example.shape), fmt=fmt)
        module = self.emitter.finish(variables, self._body)
        output = next(node for node in self.graph.graph.nodes if node.op == "output")
        return Lowered(
            module=module,
            recipes=self.emitter.recipes,
            sites=self.sites,
            arrays=self.emitter.arrays,
            kernel_of=self.kernel_of,
            input_shapes=[tuple(example.shape) for example in self.inputs],
            input_dtypes=[str(example.dtype).removeprefix("torch.") for example in self.inputs],
            output_shapes=[self.shape(node) for node in output.args[0]],
        )

    def _body(self) -> list[Any]:
        for node in self.graph.graph.nodes:
            if node.op == "output":
                return [self.emitter.logical(self.value(out)).var for out in node.args[0]]
            if node.op == "call_function" and node.name not in self.integers:
                self.values[node] = self._lower(node)
        raise AssertionError("a graph ends with its output")

    def _lower(self, node: fx.Node) -> Any:
        rule = _RULES.get(node.target)
        try:
            return rule(self, node) if rule else self.float_op(node)
        except LoweringError:
            raise
        except UnsupportedOpError as error:
            raise UnsupportedOpError(
                error.message,
                where=f"node {node.name}, {source_line(node)}",
                found=error.found,
                remedy=error.remedy,
            ) from error
        except Exception as error:
            raise LoweringError(
                f"cannot lower {node.target}",
                where=f"node {node.name}, {source_line(node)}",
                found=f"{type(error).__name__}: {str(error).strip()[:400]}",
                remedy="constrain the sites around it to fp32, or replace the operator",
            ) from error

    # Values

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's tensor for the example inputs."""
        return self.shapes[node.name][0]

    def value(self, node: Any) -> Value:
        """The lowered tensor of a node; constants are registered when first used."""
        if node not in self.values:
            tensor = constant(self.graph, node)
            if tensor is None:
                raise LoweringError("no tensor", where=str(node), remedy="report this graph")
            var = self.emitter.array(str(node.target), tensor.contiguous().numpy())
            self.values[node] = Value(
                var=var, shape=tuple(tensor.shape), fmt=_STORAGE[tensor.dtype]
            )
        return self.values[node]

    def tensor(self, node: fx.Node) -> np.ndarray:
        """The array of a constant; bf16 as its bits."""
        tensor = constant(self.graph, node)
        assert tensor is not None
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(np.uint16)
        return tensor.contiguous().numpy()

    # Matrix multiplies

    def conv2d(self, node: fx.Node) -> Value:
        x, weight = self.emitter.channels_last(self.value(node.args[0])), node.args[1]
        stride, padding, dilation, groups, input_dilation = node.args[5:10]
        out = node.args[13]
        residual = None if node.args[4] is None else self.value(node.args[4])
        compute = {"u8": "int8", "bf16": "bf16", "fp32": "fp32"}[x.fmt]
        workload = conv_workload(
            x.shape,
            tuple(self.tensor(weight).shape),
            (stride, padding, dilation, groups, input_dilation),
            compute,
            str(out),
            residual.fmt if residual else None,
        )
        if residual is not None:
            residual = self.emitter.channels_last(residual)
        return self._matmul(node, workload, x, residual, node.args[10:13], nhwc=True)

    def linear(self, node: fx.Node) -> Value:
        x = self.emitter.logical(self.value(node.args[0]))
        residual = None if node.args[4] is None else self.value(node.args[4])
        record = self.records[node.name]
        workload = linear_workload(
            x.shape,
            self.tensor(node.args[1]).shape,
            record.candidate,
            str(node.args[8]),
            residual.fmt if residual else None,
        )
        if residual is not None:
            residual = self.emitter.logical(residual)
        return self._matmul(node, workload, x, residual, node.args[5:8], nhwc=False)

    def _matmul(
        self,
        node: fx.Node,
        workload: Any,
        x: Value,
        residual: Value | None,
        epilogue: tuple[Any, ...],
        nhwc: bool,
    ) -> Value:
        zero_points, residual_scale, bounds = epilogue
        name, scales = self._store(node)
        values = {
            "input_scale": scales[0],
            "output_scale": scales[1],
            "zero_points": [int(z) for z in zero_points],
            "residual_scale": float(residual_scale),
            "bounds": [str(float(b)) for b in bounds],
        }
        weight, record = self.emitter.matmul_parameters(name, workload, values)
        arguments = [x.var, weight, record, *([residual.var] if residual else [])]
        if node.name in self.records:
            self.kernel_of[self.records[node.name].site.id] = workload.key
        return self.emitter.kernel(workload, arguments, self.shape(node), workload.out, nhwc)

    def _store(self, node: fx.Node) -> tuple[str, tuple[float, float]]:
        """Put the weights of a node among the stored arrays; return name and (input, output)."""
        record = self.records.get(node.name)
        if record is None:
            return self._store_affine(node), (1.0, 1.0)
        site, arrays = _stored_site(record)
        self.sites[site.name] = site
        self.emitter.arrays.update(arrays)
        return site.name, (record.input_scale, record.output_scale)

    def _store_affine(self, node: fx.Node) -> str:
        # A lone batch norm: weights of one, its factors are already in units of the output.
        weight, scale, bias = (self.tensor(n) for n in node.args[1:4])
        integer = weight.dtype == np.int8
        site = StoredSite(
            name=node.name,
            kind="int",
            bits=2,
            shape=weight.shape,
            has_bias=True,
        )
        self.sites[node.name] = site
        self.emitter.arrays.update(stored_arrays(site, weight.astype(np.int8), scale, bias))
        assert integer or weight.dtype == np.float32
        return node.name

    # Elementwise

    def convert(self, node: fx.Node) -> Value:
        zero_point_in, scale, bounds, zero_point, out = node.args[1:6]
        x = self.value(node.args[0])
        record = packing.pack_convert(zero_point_in, scale, bounds, zero_point)
        if not x.nhwc and len(x.shape) == 4 and not x.layout_free and out != "fp32":
            # Quantized 4-D tensors go to convolutions: change the layout on the way.
            return self.emitter.transpose_convert(x, "to_nhwc", str(out), record)
        workload = ConvertWorkload(size=x.size, source=x.fmt, target=out)  # type: ignore[arg-type]
        arguments = [x.var, self.emitter.words(record)]
        return self.emitter.kernel(workload, arguments, x.shape, str(out), x.nhwc)

    def add(self, node: fx.Node) -> Value:
        zero_points, scales, bounds, out = node.args[2:6]
        a, b = self._aligned(self.value(node.args[0]), self.value(node.args[1]))
        workload = AddWorkload(size=a.size, a=a.fmt, b=b.fmt, out=out)  # type: ignore[arg-type]
        record = self.emitter.words(packing.pack_add(zero_points, scales, bounds))
        return self.emitter.kernel(workload, [a.var, b.var, record], a.shape, str(out), a.nhwc)

    def multiply(self, node: fx.Node) -> Value:
        zero_points, scale, bounds, out = node.args[2:6]
        a, b = self.value(node.args[0]), self.value(node.args[1])
        if a.shape == b.shape:
            a, b = self._aligned(a, b)
            batch, pixels, channels, broadcast = 1, 1, a.size, "none"
        else:
            a = self.emitter.channels_last(a)
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
        record = self.emitter.words(packing.pack_multiply(zero_points, scale, bounds))
        return self.emitter.kernel(workload, [a.var, b.var, record], a.shape, str(out), a.nhwc)

    def _aligned(self, a: Value, b: Value) -> tuple[Value, Value]:
        if len(a.shape) == 4 and (a.nhwc or b.nhwc):
            return self.emitter.channels_last(a), self.emitter.channels_last(b)
        return a, b

    def table(self, node: fx.Node) -> Value:
        x = self.value(node.args[0])
        table = self.emitter.array(str(node.args[1].target), self.tensor(node.args[1]))
        return self.emitter.kernel(LutWorkload(size=x.size), [x.var, table], x.shape, "u8", x.nhwc)

    # Pooling and concatenation

    def average_pool(self, node: fx.Node) -> Value:
        rows, columns, scale, zero_points, bounds, out = node.args[1:7]
        spans = [list(zip(flat[::2], flat[1::2], strict=True)) for flat in (rows, columns)]
        record = packing.pack_pool(zero_points[0], bounds, zero_points[1])
        scales = self.emitter.words(self.tensor(scale))
        return self._pool(node, "avg", spans, (1, 1), str(out), record, scales)

    def max_pool(self, node: fx.Node) -> Value:
        kernel, stride, padding, dilation, ceil_mode = node.args[1:6]
        spans = []
        for axis, size in enumerate(self.shape(node.args[0])[2:]):
            k, s, p, d = (pair[axis] for pair in (kernel, stride, padding, dilation))
            out = pooled_size(size, k, s, p, d, bool(ceil_mode))
            spans.append(windows_1d(size, k, s, p, d, out))
        return self._pool(node, "max", spans, dilation, None, None, None)

    def _pool(
        self,
        node: fx.Node,
        kind: str,
        spans: Any,
        step: Any,
        out: str | None,
        record: Any,
        scales: Any,
    ) -> Value:
        x = self.emitter.channels_last(self.value(node.args[0]))
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
        arguments = [x.var, self.emitter.words(packing.pack_windows(*spans))]
        if kind == "avg":
            arguments += [scales, self.emitter.words(record)]
        return self.emitter.kernel(workload, arguments, self.shape(node), workload.out, True)

    def concat(self, node: fx.Node) -> Value:
        shape = self.shape(node)
        axis = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % len(shape)
        parts = [self.value(part) for part in node.args[0]]
        nhwc = any(part.nhwc for part in parts)
        bring = self.emitter.channels_last if nhwc else self.emitter.logical
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
        return self.emitter.kernel(workload, arguments, shape, parts[0].fmt, nhwc)

    # Moves and float operators

    def reshape(self, node: fx.Node) -> Value:
        x = self.emitter.logical(self.value(node.args[0]))
        return replace(x, shape=self.shape(node))

    def pick(self, node: fx.Node) -> Value:
        return self.values[node.args[0]][node.args[1]]

    def move(self, node: fx.Node) -> Value | list[Value]:
        x = self.value(node.args[0])
        arguments = fx.node.map_arg(node.args[1:], lambda n: self.integers[n.name])
        shape = self.shapes[node.name][0] if node.name in self.shapes else None
        return MOVES[node.target](self.emitter, x, shape, arguments, dict(node.kwargs))

    def float_op(self, node: fx.Node) -> Value | list[Value]:
        """Embed any other ATen operator, imported by TVM's own frontend, in float."""
        sources = node.all_input_nodes
        tensors = [n for n in sources if n.name not in self.integers]
        examples = {n: self._example(n) for n in tensors}
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda n: examples.get(n, self.integers.get(n.name))
        )
        ordered = [n for n in sources if n in examples]
        operands = []
        for source in ordered:
            value = self.emitter.logical(self.value(source))
            shape = relax.ShapeExpr(list(value.shape))
            operands.append(self.emitter.builder.emit(relax.op.reshape(value.var, shape)))
        module = import_float_op(node.target, args, kwargs, [examples[n] for n in ordered])
        result = embed(self.emitter.builder, module, node.name, operands)
        return self._flattened(node, result)

    def _flattened(self, node: fx.Node, result: Any) -> Value | list[Value]:
        builder = self.emitter.builder
        if node.name in self.shapes:
            shape, dtype = self.shapes[node.name]
            flat = relax.ShapeExpr([int(np.prod(shape))])
            var = builder.emit(relax.op.reshape(result, flat))
            return Value(var=var, shape=shape, fmt=_STORAGE[dtype])
        picks = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        values: list[Any] = [None] * (max(picks) + 1)
        for index, user in picks.items():
            item = builder.emit(relax.TupleGetItem(result, index))
            values[index] = self._flattened(user, item)
        return values

    def _example(self, node: fx.Node) -> Tensor:
        shape, dtype = self.shapes[node.name]
        return torch.zeros(shape, dtype=dtype)


def _integer_values(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Return the value of every shape computation for these inputs, by node name."""
    from mpq_compile.passes.base import ValueRecorder

    recorder = ValueRecorder(module, lambda _, v: v if isinstance(v, (int, float)) else None)
    with torch.no_grad():
        recorder.run(*inputs)
    return {name: value for name, value in recorder.kept.items() if value is not None}  # type: ignore[misc]


def _stored_site(record: SiteRecord) -> tuple[StoredSite, dict[str, np.ndarray]]:
    candidate: Candidate = record.candidate
    if isinstance(record.weight, QuantizedWeight):
        kind, bits = "int", candidate.weight_bits
        weight, scale = record.weight.codes.numpy(), record.weight.scale.numpy()
    else:
        kind, bits = candidate.name, candidate.weight_bits
        scale = np.ones(len(record.weight), np.float32)
        bits16 = record.weight.dtype == torch.bfloat16
        raw = record.weight.contiguous()
        weight = raw.view(torch.int16).numpy().view(np.uint16) if bits16 else raw.numpy()
    site = StoredSite(
        name=record.site.id,
        kind=kind,
        bits=bits,
        shape=tuple(weight.shape),
        has_bias=record.has_bias,
    )
    return site, stored_arrays(site, weight, scale, record.bias.numpy())


_RULES: dict[Any, Callable[[_Lowering, fx.Node], Any]] = {
    qops.QCONV2D: _Lowering.conv2d,
    qops.QLINEAR: _Lowering.linear,
    qops.CONVERT: _Lowering.convert,
    qops.QADD: _Lowering.add,
    qops.QMUL: _Lowering.multiply,
    qops.LUT: _Lowering.table,
    qops.AVG_POOL2D: _Lowering.average_pool,
    qops.MAX_POOL2D: _Lowering.max_pool,
    aten.cat.default: _Lowering.concat,
    operator.getitem: _Lowering.pick,
    **dict.fromkeys(RESHAPES, _Lowering.reshape),
    **dict.fromkeys(MOVES, _Lowering.move),
}

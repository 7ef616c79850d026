"""Walks a materialized graph and writes the ONNX model that computes the same."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from mpq_compile.capture import source_line
from mpq_compile.errors import UnsupportedOpError
from mpq_compile.integrations.qdq import exact, sites, tensors
from mpq_compile.integrations.qdq.dtypes import onnx_type
from mpq_compile.integrations.qdq.floats import FLOATS, Rule
from mpq_compile.integrations.qdq.logic import LOGIC
from mpq_compile.integrations.qdq.moves import MOVES
from mpq_compile.integrations.qdq.shapes import Sizes
from mpq_compile.integrations.qdq.values import Call, Value
from mpq_compile.integrations.qdq.writer import OPSET, Writer
from mpq_compile.passes.base import ValueRecorder, constant, target_name
from mpq_compile.passes.materialized import Materialized
from mpq_compile.quant import ops as qops

# Property of an exact model: the names of nodes that may differ from the device, as JSON.
INEXACT = "mpq.inexact"
_FORMATS = (torch.uint8, torch.bfloat16)
_REALS = (torch.float32, *_FORMATS)
_ATEN: Mapping[Any, Rule] = {**FLOATS, **LOGIC, **MOVES}
# That of the operator set: its readers may refuse later ones.
_IR_VERSION = 10


class Export:
    """One export: what stands for each node, and the sizes of everything.

    Args:
        source: The materialized graph.
        int32_biases: Round biases between integer products to the accumulator's units.
        exact: Write integers and the device's own order of operations (``qdq.exact``).

    Attributes:
        inexact: Nodes that have no exact form where that was asked for: they may differ.
    """

    def __init__(
        self, source: Materialized, int32_biases: bool = False, exact: bool = False
    ) -> None:
        self.source, self.writer, self.int32_biases = source, Writer(), int32_biases
        self.exact = exact
        self.inexact: list[str] = []
        self._values: dict[str, Any] = {}
        captured = source.network.captured
        inputs = captured.example_inputs
        more = tuple(torch.cat([x, x]) for x in inputs) if captured.dynamic_batch else inputs
        self._kept, self._longer = (_recorded(source.module, batch) for batch in (inputs, more))
        self._floats = {node.name: node for node in source.network.module.graph.nodes}
        placeholders = [n for n in source.module.graph.nodes if n.op == "placeholder"]
        for node in placeholders:
            self._values[node.name] = self._sized(node, self.writer.name(node.name))
        self.inputs = [self._values[node.name] for node in placeholders]
        self.sizes = Sizes(self.writer, self.inputs[0])

    def model(self) -> onnx.ModelProto:
        """Return the whole model, checked by ONNX itself."""
        for node in self.source.module.graph.nodes:
            if node.op == "call_function" and not isinstance(self._kept[node.name], (int, float)):
                self._values[node.name] = self._written(node)
        outputs = self._outputs()
        graph = helper.make_graph(
            self.writer.nodes,
            "network",
            [_described(value) for value in self.inputs],
            [_described(value) for value in outputs],
            self.writer.initializers,
        )
        model = helper.make_model(
            graph,
            producer_name="mpq_compile",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
        )
        records = self.source.records.values()
        assignment = {record.site.id: record.candidate.name for record in records}
        properties = {"mpq.assignment": json.dumps(assignment)}
        if self.exact:
            properties[INEXACT] = json.dumps(self.inexact)
        helper.set_model_props(model, properties)
        onnx.checker.check_model(model, full_check=True)
        return model

    # What rules ask

    def value(self, node: fx.Node) -> Value:
        """Return the tensor of a node; constants are stored when they are first used."""
        if node.name not in self._values:
            tensor = constant(self.source.module, node)
            assert tensor is not None
            name = self.writer.constant(tensor.contiguous().numpy(), str(node.target))
            self._values[node.name] = self._sized(node, name)
        found: Value = self._values[node.name]
        return found

    def result(self, node: fx.Node) -> Value:
        """Return the sizes of what a node returns."""
        return self._sized(node, node.name)

    def codes(self, node: fx.Node) -> str | None:
        """Return the codes of a node's tensor; None where it is float."""
        if node.name not in self.source.codes:
            return None
        return self.writer.codes.get(self.value(node).name)

    def origin(self, node: fx.Node) -> fx.Node | None:
        """Return the node of the float graph that ``node`` computes; None for conversions."""
        name = self.source.origins.get(node.name)
        return None if name is None else self._floats[name]

    # Writing

    def _written(self, node: fx.Node) -> Any:
        """Write a node, and the format that its result is stored in."""
        if node.target is operator.getitem:
            source = self._values[node.args[0].name]
            name = source[node.args[1]]
        else:
            found = exact.written(self, node) if self.exact else None
            if found is not None:
                return self._sized(node, found)
            if self.exact and self._may_differ(node):
                self.inexact.append(node.name)
            rule = _RULES.get(node.target)
            name = rule(self, node) if rule else self._aten(node)
        if isinstance(name, list):
            return name
        return self._sized(node, self._stored(node, name))

    def _may_differ(self, node: fx.Node) -> bool:
        """Tell whether what is written by no exact rule may differ from the device's result."""
        kept = self._kept[node.name]
        stands_for_reals = not isinstance(kept, _Sizes) or kept.dtype in _REALS
        return stands_for_reals and node.target not in exact.AGREED

    def _stored(self, node: fx.Node, name: str) -> str:
        qparams = self.source.codes.get(node.name)
        if qparams is not None:
            return self.writer.quantized(name, qparams, node.name)
        if self._kept[node.name].dtype == torch.bfloat16:
            return self.writer.rounded_to_bf16(name, node.name)
        return name

    def _aten(self, node: fx.Node) -> Any:
        return self._called(node, node.target, node.args, node.kwargs)

    def table(self, node: fx.Node) -> Any:
        """Write the function that a table of codes stands for."""
        origin = self.origin(node)
        assert origin is not None
        x = fx.node.map_arg(origin.args, lambda _: node.args[0])
        return self._called(node, origin.target, x, origin.kwargs)

    def _called(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> Any:
        rule = _ATEN.get(target)
        if rule is None:
            raise UnsupportedOpError(
                f"operator {target_name(node)} has no form in ONNX here",
                where=f"node {node.name}, {source_line(node)}",
                expected="an operator of the README's list",
                found=target_name(node),
                remedy="replace it in the model",
            )
        result = self.result(node) if isinstance(self._kept[node.name], _Sizes) else None
        call = Call(
            name=node.name,
            target=target,
            args=fx.node.map_arg(args, self._operand),
            kwargs=fx.node.map_arg(kwargs, self._operand),
            result=result,
        )
        return rule(self.writer, self.sizes, call)

    def _operand(self, node: fx.Node) -> Any:
        kept = self._kept[node.name]
        return kept if isinstance(kept, (int, float)) else self.value(node)

    def _sized(self, node: fx.Node, name: str) -> Value:
        kept, longer = self._kept[node.name], self._longer[node.name]
        dtype = torch.float32 if kept.dtype in _FORMATS else kept.dtype
        return Value(name=name, shape=kept.shape, longer=longer.shape, dtype=dtype)

    def _outputs(self) -> list[Value]:
        output = next(n for n in self.source.module.graph.nodes if n.op == "output")
        found = []
        for node, stem in zip(output.args[0], self._output_names(), strict=True):
            value = self.value(node)
            found.append(self._sized(node, self.writer.op("Identity", value.name, into=stem)))
        return found

    def _output_names(self) -> list[str]:
        """Return the keys of outputs that have some, else ``output``, ``output_1`` and so on."""
        spec = self.source.network.captured.out_spec
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
        keys = [getattr(path[-1], "key", None) if path else None for path in paths]
        plain = ["output" if i == 0 else f"output_{i}" for i in range(len(keys))]
        return [k if isinstance(k, str) else p for k, p in zip(keys, plain, strict=True)]


def _matmul_or_affine(graph: Export, node: fx.Node) -> str:
    rule = sites.conv2d if node.name in graph.source.records else tensors.affine
    return rule(graph, node)


_RULES: Mapping[Any, Callable[[Export, fx.Node], Any]] = {
    qops.QCONV2D: _matmul_or_affine,
    qops.QLINEAR: sites.linear,
    qops.QUANTIZE_ROWS: sites.quantize_rows,
    qops.QLINEAR_ROWS: sites.linear,
    qops.EMBEDDING: sites.embedding,
    qops.CONVERT: tensors.convert,
    qops.QADD: tensors.add,
    qops.QMUL: tensors.multiply,
    qops.LUT: Export.table,
    qops.ATTENTION: tensors.attention,
    qops.AVG_POOL2D: tensors.average_pool,
    qops.MAX_POOL2D: tensors.max_pool,
}


class _Sizes:
    """Shape and dtype of a tensor, whose values are not kept."""

    def __init__(self, value: Tensor) -> None:
        self.shape, self.dtype = tuple(value.shape), value.dtype


def _recorded(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Run a graph; return sizes of tensors and values of numbers, by node name."""
    recorder = ValueRecorder(module, lambda _, v: _Sizes(v) if isinstance(v, Tensor) else v)
    with torch.no_grad():
        recorder.run(*inputs)
    return recorder.kept


def _described(value: Value) -> onnx.ValueInfoProto:
    """Describe an input or an output; sizes that follow the batch are free."""
    names = {axis: "batch" if axis == 0 else f"batch_{axis}" for axis in value.free}
    sizes = [names.get(axis, size) for axis, size in enumerate(value.shape)]
    return helper.make_tensor_value_info(value.name, onnx_type(value.dtype), sizes)

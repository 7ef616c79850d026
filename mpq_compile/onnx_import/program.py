"""A normalised model as a list of nodes and a table of constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from torch import Tensor

from mpq_compile.errors import CaptureError, UnsupportedOpError
from mpq_compile.onnx_import.source import Source

# Types of 2 and 4 bits are held in bytes; ``Program.elements`` tells.
DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT16: torch.int16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
}

# What is held in bytes, and the type of those.
NARROW: Mapping[int, int] = {
    TensorProto.INT4: TensorProto.INT8,
    TensorProto.INT2: TensorProto.INT8,
    TensorProto.UINT4: TensorProto.UINT8,
    TensorProto.UINT2: TensorProto.UINT8,
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One call of an operator.

    Args:
        op: Name of the operator, of ONNX or of ours (``linears``).
        name: As in the file, or made from its first output.
        inputs, outputs: Names of values; an empty one is left out.
        attributes: Python numbers, strings, lists, and tensors.
        where: File, node, operator and the file's opset, for errors.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or ``default``."""
        return self.attributes.get(name, default)

    def unsupported(self, found: str, remedy: str | None = None) -> UnsupportedOpError:
        """Return the error for a form of this operator that is not read."""
        return UnsupportedOpError(
            f"{self.op} is not supported in this form",
            where=self.where,
            found=found,
            remedy=remedy or "export the model so that the operator is not needed in this form",
        )


@dataclass(frozen=True, kw_only=True)
class QuantizedConstant:
    """A constant that the file holds as codes: ``(codes − zero_point) · scale`` by element.

    Args:
        codes: int8, uint8, int16 or uint16 of the constant's shape.
        scale, zero_point: Spread over the same shape, so that they can be moved with the codes.
        bits: 2 to 16.
        signed: True where codes are two's complement.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    signed: bool

    def moved(self, move: Callable[[Tensor], Tensor]) -> QuantizedConstant:
        """Return the constant with its elements in other places."""
        codes, scale, zero_point = map(move, (self.codes, self.scale, self.zero_point))
        return replace(self, codes=codes, scale=scale, zero_point=zero_point)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A graph of ONNX operators.

    Args:
        nodes: In an order that computes inputs first.
        constants: Initializers and what was computed from them, by name.
        inputs: Name to shape (None where it is free) and dtype.
        outputs: Names.
        shapes: Inferred shapes by name; None where a dimension is not known.
        elements: ONNX element type by name of a value.
        quantized: Constants whose codes are known, by name.
        origins: The initializer that a computed constant was made of, by name.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, Tensor]
    inputs: Mapping[str, tuple[tuple[int | None, ...], torch.dtype]]
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    elements: Mapping[str, int] = field(default_factory=dict)
    quantized: Mapping[str, QuantizedConstant] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def users(self) -> dict[str, list[Node]]:
        """Return the nodes that read each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def producers(self) -> dict[str, Node]:
        """Return the node that computes each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    def with_nodes(self, nodes: list[Node], constants: Mapping[str, Tensor]) -> Program:
        """Return the program with other nodes, and constants added to its own."""
        return replace(self, nodes=tuple(nodes), constants={**self.constants, **constants})


def program_of(source: Source) -> Program:
    """Return the nodes and constants of a model.

    Raises:
        CaptureError: A type that PyTorch lacks.
    """
    graph = source.model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    constants = {tensor.name: tensor_of(tensor) for tensor in graph.initializer}
    typed = {value.name: value.type.tensor_type.elem_type for value in values}
    typed.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return Program(
        nodes=tuple(_typed(_node(node, source), typed) for node in graph.node),
        constants=constants,
        inputs={value.name: (_shape(value) or (), _dtype(value)) for value in graph.input},
        outputs=tuple(value.name for value in graph.output),
        shapes={value.name: shape for value in values if (shape := _shape(value)) is not None},
        elements=typed,
    )


def tensor_of(proto: TensorProto) -> Tensor:
    """Return an initializer as a tensor; codes of 2 and 4 bits are widened to bytes."""
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        raise CaptureError(
            "a tensor has a type that is not read",
            where=proto.name,
            expected="float, integer or boolean tensors",
            found=TensorProto.DataType.Name(proto.data_type),
            remedy="export the model with float32 weights",
        )
    array = numpy_helper.to_array(proto)
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    # The copy is writable and aligned; an array of the file's own bytes is neither.
    widened = np.array(
        array.astype(helper.tensor_dtype_to_np_dtype(NARROW.get(proto.data_type, proto.data_type)))
    )
    return torch.from_numpy(widened).to(dtype)


def _node(proto: NodeProto, source: Source) -> Node:
    name = proto.name or next((output for output in proto.output if output), "")
    where = f"{source.path}, node {name!r} ({proto.op_type}, opset {source.opset})"
    return Node(
        op=proto.op_type,
        name=name,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={a.name: _attribute(a) for a in proto.attribute},
        where=where,
    )


def _typed(node: Node, elements: Mapping[str, int]) -> Node:
    """Let a node say its output's type where an operand says it: tensors do not know 4 bits."""
    element = elements.get(node.outputs[0], TensorProto.UNDEFINED)
    if node.op == "CastLike":
        return replace(node, op="Cast", inputs=node.inputs[:1], attributes={"to": element})
    if node.op == "QuantizeLinear" and element:
        return replace(node, attributes={**node.attributes, "output_dtype": element})
    return node


def _attribute(proto: AttributeProto) -> Any:
    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return tensor_of(value)
    if isinstance(value, onnx.GraphProto):
        return value
    if isinstance(value, float):
        return _shortest(value)
    if proto.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS):
        return [_plain(v) for v in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return _shortest(value) if isinstance(value, float) else value


def _shortest(value: float) -> float:
    """Return 1e-5 for the float32 nearest to it: files hold float32, modules what was typed."""
    return float(str(np.float32(value)))


def _shape(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)


def _dtype(value: ValueInfoProto) -> torch.dtype:
    element = value.type.tensor_type.elem_type
    if element not in DTYPES:
        raise CaptureError(
            "an input has a type that is not read",
            where=value.name,
            expected="a tensor of floats, integers or booleans",
            found=str(value.type).strip().replace("\n", " ")[:100],
            remedy="export the model with tensor inputs",
        )
    return DTYPES[element]

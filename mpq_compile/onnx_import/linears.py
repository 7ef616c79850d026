"""Linear layers as PyTorch has them: ``x @ weight.T + bias`` with one weight and one bias.

Exporters write them as MatMul and Add, or as Gemm with either order of its matrix. One form gives
them the weights, names and codes that the module has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from mpq_compile.onnx_import.program import Node, Program

# Ends the names of constants that are another one, transposed.
TRANSPOSED = "::transposed"


def with_linears(program: Program) -> Program:
    """Return a program whose products with a constant matrix are ``Linear`` nodes."""
    users = program.users()
    constants: dict[str, Tensor] = {}
    quantized = dict(program.quantized)
    nodes: list[Node] = []
    absorbed: set[int] = set()
    for node in program.nodes:
        if id(node) in absorbed:
            continue
        linear = _linear(node, program.constants, constants)
        if linear is None:
            nodes.append(node)
            continue
        add = _bias_add(linear, users, program)
        if add is not None:
            absorbed.add(id(add))
            linear = _with_bias(linear, add)
        nodes.append(linear)
    for name in constants:
        source = program.quantized.get(name.removesuffix(TRANSPOSED))
        if source is not None:
            quantized[name] = source.moved(lambda codes: codes.t().contiguous())
    return replace(program.with_nodes(nodes, constants), quantized=quantized)


def _linear(node: Node, known: Mapping[str, Tensor], constants: dict[str, Tensor]) -> Node | None:
    """Return the Linear that a MatMul or a Gemm is, or None."""
    if node.op == "MatMul":
        turned = True
    elif node.op == "Gemm" and _is_plain(node, known):
        turned = not node.get("transB", 0)
    else:
        return None
    weight = node.inputs[1]
    if weight not in known or known[weight].dim() != 2 or node.inputs[0] in known:
        return None
    if turned:
        # One product a name: a matrix that two layers share stays shared.
        weight = f"{node.inputs[1]}{TRANSPOSED}"
        constants[weight] = known[node.inputs[1]].t().contiguous()
    inputs = (node.inputs[0], weight, *node.inputs[2:])
    return replace(node, op="Linear", inputs=inputs, attributes={})


def _is_plain(node: Node, known: Mapping[str, Tensor]) -> bool:
    """Tell whether a Gemm is ``x @ w`` or ``x @ w.T`` with a bias of one number an output."""
    if node.get("transA", 0) or node.get("alpha", 1.0) != 1.0 or node.inputs[1] not in known:
        return False
    if len(node.inputs) < 3 or not node.inputs[2]:
        return True
    outputs = known[node.inputs[1]].shape[0 if node.get("transB", 0) else 1]
    bias = known.get(node.inputs[2])
    return node.get("beta", 1.0) == 1.0 and bias is not None and tuple(bias.shape) == (outputs,)


def _bias_add(linear: Node, users: Mapping[str, list[Node]], program: Program) -> Node | None:
    """Return the Add behind a product that adds a vector of its outputs, and nothing else reads."""
    result = linear.outputs[0]
    readers = users.get(result, [])
    if len(linear.inputs) > 2 or len(readers) != 1 or result in program.outputs:
        return None
    add = readers[0]
    if add.op != "Add":
        return None
    bias = program.constants.get(_other(add, result))
    outputs = (_weight_rows(linear, program),)
    return add if bias is not None and tuple(bias.shape) == outputs else None


def _weight_rows(linear: Node, program: Program) -> int:
    weight = linear.inputs[1]
    if weight in program.constants:
        return program.constants[weight].shape[0]
    return program.constants[weight.removesuffix(TRANSPOSED)].shape[1]


def _other(add: Node, result: str) -> str:
    return add.inputs[1] if add.inputs[0] == result else add.inputs[0]


def _with_bias(linear: Node, add: Node) -> Node:
    bias = _other(add, linear.outputs[0])
    return replace(linear, inputs=(*linear.inputs, bias), outputs=add.outputs)

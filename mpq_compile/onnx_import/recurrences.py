"""Recurrent layers with parameters as PyTorch has them: of each direction, gates in its order.

They bear PyTorch's names behind the name of the weight that they are a part of, so that sites and
codes are the module's.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mpq_compile.onnx_import.operators.recurrent import check, parameters_of
from mpq_compile.onnx_import.program import Node, Program

# Between the name of a weight and that of its part, and behind it for the way back.
PART, REVERSE = "::", "_reverse"
_KINDS = ("LSTM", "GRU", "RNN")
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def with_recurrences(program: Program) -> Program:
    """Return a program whose recurrent layers of constant weights are ``Recurrent`` nodes."""
    constants: dict[str, Tensor] = {}
    nodes = [_recurrent(node, program, constants) for node in program.nodes]
    return program.with_nodes(nodes, constants)


def _recurrent(node: Node, program: Program, constants: dict[str, Tensor]) -> Node:
    if node.op not in _KINDS:
        return node
    names = [*node.inputs, *[""] * (8 - len(node.inputs))]
    x, w, r, b, lengths, h, c, peepholes = names
    if any(name and name not in program.constants for name in (w, r, b, lengths)):
        return node
    shape = program.shapes.get(x, ())
    time = 1 if node.get("layout", 0) else 0
    steps = shape[time] if len(shape) > time else None
    if lengths and steps is None:
        return node  # it is checked when the length is known
    check(node, node.op, steps, program.constants.get(lengths), peepholes or None)
    values = parameters_of(
        node.op, program.constants[w], program.constants[r], program.constants.get(b)
    )
    inputs = [x, h, c]
    for way, parameters in enumerate(values):
        for name, source, value in zip(_NAMES, (w, r, b, b), parameters, strict=False):
            inputs.append(f"{source}{PART}{name}{REVERSE if way else ''}")
            constants[inputs[-1]] = value.contiguous()
    attributes = {**node.attributes, "kind": node.op}
    return replace(node, op="Recurrent", inputs=tuple(inputs), attributes=attributes)

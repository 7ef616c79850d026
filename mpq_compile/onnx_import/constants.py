"""Evaluate once what depends on constants alone, whatever operator it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mpq_compile.onnx_import.network import Values, known_constants
from mpq_compile.onnx_import.operators import OPERATORS
from mpq_compile.onnx_import.operators.quantizers import codes_of
from mpq_compile.onnx_import.program import Node, Program, QuantizedConstant

# What changes places only: codes move as the values do.
_MOVES = ("Transpose", "Reshape", "Identity")


def fold_constants(program: Program) -> Program:
    """Return a program without nodes whose inputs are all constants.

    Reshapes, casts and transposes of weights go, and so does arithmetic on shapes that are known.

    Raises:
        UnsupportedOpError: The table lacks such a node's operator.
    """
    values = Values(program.constants, known_constants(program.constants))
    nodes: list[Node] = []
    folded: dict[str, Tensor] = {}
    quantized = dict(program.quantized)
    origins = dict(program.origins)
    with torch.no_grad():
        for node in program.nodes:
            if not _is_constant(node, values):
                nodes.append(node)
                continue
            values.run(node)
            new = {name: values.tensor(name) for name in node.outputs if values.holds(name)}
            values.known.update(known_constants(new))
            folded.update(new)
            _follow_codes(node, values, program.elements, quantized)
            if node.inputs:
                first = node.inputs[0]
                origins.update(dict.fromkeys(new, origins.get(first, first)))
    return replace(program.with_nodes(nodes, folded), quantized=quantized, origins=origins)


def _follow_codes(
    node: Node,
    values: Values,
    elements: Mapping[str, int],
    quantized: dict[str, QuantizedConstant],
) -> None:
    """Remember the codes of what was dequantized, and of what only moved since."""
    if node.op == "DequantizeLinear":
        operands = [values.tensor(name) for name in node.inputs if name]
        found = codes_of(node, elements.get(node.inputs[0], 0), *operands)
        if found is not None:
            quantized[node.outputs[0]] = found
    elif node.op in _MOVES and node.inputs[0] in quantized:
        operator, rest = OPERATORS[node.op], [values.known[name] for name in node.inputs[1:]]
        quantized[node.outputs[0]] = quantized[node.inputs[0]].moved(
            lambda tensor: operator.function(node, tensor, *rest)  # type: ignore[arg-type,return-value]
        )


def _is_constant(node: Node, values: Values) -> bool:
    return all(values.holds(name) for name in node.inputs if name)

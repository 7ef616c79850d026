"""Free the batch of models that were exported for one batch size.

Where a file reshapes ``[1, 64, 4, 4]`` to ``[1, 1024]``, the first 1 is the batch: 0, which keeps
the dimension, means the same for the shapes of the file and leaves others possible. Whether the
batch then is free is found out by the trace, which compares samples computed together and apart.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mpq_compile.onnx_import.program import Node, Program


def free_batch(program: Program) -> Program:
    """Return a program whose reshapes keep a first dimension that they leave as it is."""
    constants: dict[str, Tensor] = {}
    nodes = [_freed(node, program, constants) for node in program.nodes]
    return program.with_nodes(nodes, constants)


def _freed(node: Node, program: Program, constants: dict[str, Tensor]) -> Node:
    if node.op != "Reshape" or node.get("allowzero", 0):
        return node
    shape, before = program.constants.get(node.inputs[1]), program.shapes.get(node.inputs[0])
    if shape is None or not before or shape.numel() == 0 or before[0] != int(shape[0]):
        return node
    name = f"{node.outputs[0]}::shape"
    constants[name] = torch.cat([shape.new_zeros(1), shape[1:]])
    return replace(node, inputs=(node.inputs[0], name))

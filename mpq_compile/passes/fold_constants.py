"""Evaluate once what depends on no input: standardised or reshaped weights, positions, masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, constant, is_call

aten = torch.ops.aten
# Tensors that come of numbers alone, the same at every call.
_CREATORS = (
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.full.default,
    aten.ones.default,
    aten.zeros.default,
    aten.eye.default,
    aten.scalar_tensor.default,
)


@dataclass(frozen=True, kw_only=True)
class FoldConstants:
    """Replace each call whose tensors are all constants by its value."""

    name: str = "fold_constants"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            value = _evaluate(module, node)
            if value is not None:
                new = add_constant(module, node, f"{_owner(node)}folded_{node.name}", value)
                new.meta["val"] = value
                node.replace_all_uses_with(new)
                module.graph.erase_node(node)
        return module


def _evaluate(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    inputs = node.all_input_nodes
    if node.op != "call_function" or not (inputs or is_call(node, *_CREATORS)):
        return None
    values = {n: constant(module, n) for n in inputs}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    with torch.no_grad():
        result = node.target(*args, **kwargs)
    return result if isinstance(result, Tensor) else None


def _owner(node: fx.Node) -> str:
    """Keep the module path of the first parameter: site ids are made from weight names."""
    sources = node.all_input_nodes
    path = str(sources[0].target).rpartition(".")[0] if sources else ""
    return f"{path}." if path else ""

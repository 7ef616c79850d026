"""Evaluate once what depends on no input: standardised or reshaped weights, positions, masks."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    aten.eye.m,
    aten.scalar_tensor.default,
    aten.linspace.default,
    aten.logspace.default,
    aten.tril_indices.default,
    aten.triu_indices.default,
    aten.hann_window.default,
)


@dataclass(frozen=True, kw_only=True)
class FoldConstants:
    """Replace each call whose tensors are all constants by its value."""

    name: str = "fold_constants"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        several: dict[fx.Node, Sequence[Any]] = {}
        for node in list(module.graph.nodes):
            value = _picked(node, several)
            if value is None:
                value = _evaluate(module, node)
            if isinstance(value, (list, tuple)):
                several[node] = value
            if isinstance(value, Tensor):
                new = add_constant(module, node, f"{_owner(node)}folded_{node.name}", value)
                new.meta["val"] = value
                node.replace_all_uses_with(new)
                module.graph.erase_node(node)
        return module


def _picked(node: fx.Node, several: Mapping[fx.Node, Sequence[Any]]) -> Any:
    """Return one of several results, as of a grid or of chunks, where they are known."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    source, index = node.args
    return several[source][index] if source in several else None


def _evaluate(module: fx.GraphModule, node: fx.Node) -> Any:
    """Return what a call of constants gives: a tensor, or several; None for any other."""
    inputs = node.all_input_nodes
    if node.op != "call_function" or not (inputs or is_call(node, *_CREATORS)):
        return None
    values = {n: constant(module, n) for n in inputs}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _owner(node: fx.Node) -> str:
    """Keep the module path of the first parameter: site ids are made from weight names."""
    sources = node.all_input_nodes
    path = str(sources[0].target).rpartition(".")[0] if sources else ""
    return f"{path}." if path else ""

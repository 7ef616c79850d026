"""Reshapes, movements, and every other ATen operator in float."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx
from tvm import relax

from mpq_compile.lower.emit import Value
from mpq_compile.lower.float_ops import embed, import_float_op
from mpq_compile.lower.formats import STORAGE
from mpq_compile.lower.moves import MOVES

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def reshape(lowering: Lowering, node: fx.Node) -> Value:
    value, shape = lowering.value(node.args[0]), lowering.shape(node)
    source = value.view.reshaped(shape)
    if source is not None and source.is_dense:
        return Value(var=source.var, shape=shape, fmt=value.fmt)
    return replace(lowering.emitter.logical(value), shape=shape, source=source)


def pick(lowering: Lowering, node: fx.Node) -> Value:
    return lowering.values[node.args[0]][node.args[1]]


def move(lowering: Lowering, node: fx.Node) -> Value | list[Value]:
    x = lowering.value(node.args[0])
    arguments = fx.node.map_arg(node.args[1:], lambda n: lowering.integers[n.name])
    shape = lowering.shapes[node.name][0] if node.name in lowering.shapes else None
    return MOVES[node.target](lowering.emitter, x, shape, arguments, dict(node.kwargs))


def float_op(lowering: Lowering, node: fx.Node) -> Value | list[Value]:
    """Embed any other ATen operator, imported by TVM's own frontend, in float."""
    sources = node.all_input_nodes
    tensors = [n for n in sources if n.name not in lowering.integers]
    examples = {n: _example(lowering, n) for n in tensors}
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: examples.get(n, lowering.integers.get(n.name))
    )
    ordered = [n for n in sources if n in examples]
    operands = []
    for source in ordered:
        value = lowering.emitter.logical(lowering.value(source))
        shape = relax.ShapeExpr(list(value.shape))
        operands.append(lowering.emitter.emit(relax.op.reshape(value.var, shape)))
    module = import_float_op(node.target, args, kwargs, [examples[n] for n in ordered])
    result = embed(lowering.emitter.builder, module, node.name, operands)
    return _flattened(lowering, node, result)


def _flattened(lowering: Lowering, node: fx.Node, result: Any) -> Value | list[Value]:
    emit = lowering.emitter.emit
    if node.name in lowering.shapes:
        shape, dtype = lowering.shapes[node.name]
        flat = relax.ShapeExpr([int(np.prod(shape))])
        var = emit(relax.op.reshape(result, flat))
        return Value(var=var, shape=shape, fmt=STORAGE[dtype])
    picks = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    values: list[Any] = [None] * (max(picks) + 1)
    for index, user in picks.items():
        item = emit(relax.TupleGetItem(result, index))
        values[index] = _flattened(lowering, user, item)
    return values


def _example(lowering: Lowering, node: fx.Node) -> Tensor:
    shape, dtype = lowering.shapes[node.name]
    return torch.zeros(shape, dtype=dtype)

"""Recurrent layers, unrolled: LSTM, GRU and plain ones, stacked, in both directions, and cells.

The products of all inputs are one linear of all steps; each step adds one product of the hidden
state. Those of one direction share their weight, so they are sites with one set of bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import add_constant, argument, call, constant, is_call

aten = torch.ops.aten
_SHAPED = (
    aten.select.int,
    aten.slice.Tensor,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.reshape.default,
    aten.view.default,
)


@dataclass(frozen=True, kw_only=True)
class _Emit:
    """Calls and constants before one node of a module."""

    module: fx.GraphModule
    before: fx.Node

    def __call__(self, target: Any, *args: Any) -> fx.Node:
        return call(self.module, self.before, target, *args)

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """Register a buffer; return its node, whose value is known."""
        node = add_constant(self.module, self.before, name, value)
        node.meta["val"] = value
        return node

    def is_zero(self, node: fx.Node) -> bool:
        """Tell whether a tensor holds zeros alone, as what a recurrence starts from often does."""
        while is_call(node, *_SHAPED):
            node = node.args[0]
        value = constant(self.module, node)
        return value is not None and not bool(value.any())


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Parameters of one direction of one layer, as ``nn.LSTM`` names them.

    Args:
        inner: weight_ih, [G·H, I], G gates.
        hidden: weight_hh, [G·H, H], or of as many columns as a projection leaves.
        inner_bias: bias_ih, [G·H].
        hidden_bias: bias_hh, [G·H].
        projection: weight_hr, [P, H].
    """

    inner: fx.Node
    hidden: fx.Node
    inner_bias: fx.Node | None = None
    hidden_bias: fx.Node | None = None
    projection: fx.Node | None = None

    def bias(self, emit: _Emit) -> fx.Node | None:
        """Return the sum of both biases, where they are added to the same sum anyway."""
        both = [constant(emit.module, node) for node in (self.inner_bias, self.hidden_bias)]
        if self.inner_bias is None or self.hidden_bias is None:
            return self.inner_bias or self.hidden_bias
        if both[0] is None or both[1] is None:
            return emit(aten.add.Tensor, self.inner_bias, self.hidden_bias)
        return emit.constant(f"{self.inner_bias.target}_and_hh", both[0] + both[1])


# What a recurrence carries on: the hidden state and, of an LSTM, the cell's; None for zeros.
State = tuple[fx.Node | None, ...]


class _Lstm:
    """h = σ(o) · tanh(c), c = σ(f) · c + σ(i) · tanh(g)."""

    def __init__(self, emit: _Emit, weights: _Weights) -> None:
        self.emit = emit
        self.weights = weights
        self.bias = weights.bias(emit)

    def step(self, gates: fx.Node, state: State) -> State:
        hidden, cell = state
        product = None
        if hidden is not None:
            product = self.emit(aten.linear.default, hidden, self.weights.hidden, None)
        both = self.emit(ops.lstm_step, gates, product, cell)
        hidden, cell = (self.emit(operator.getitem, both, index) for index in range(2))
        if self.weights.projection is not None:
            hidden = self.emit(aten.linear.default, hidden, self.weights.projection, None)
        return hidden, cell


class _Gru:
    """h = (1 − z) · n + z · h, n = tanh(n_x + r · n_h): both products stay apart."""

    def __init__(self, emit: _Emit, weights: _Weights) -> None:
        self.emit = emit
        self.weights = weights
        self.bias = weights.inner_bias

    def step(self, gates: fx.Node, state: State) -> State:
        (hidden,) = state
        weight, bias = self.weights.hidden, self.weights.hidden_bias
        product = bias if hidden is None else self.emit(aten.linear.default, hidden, weight, bias)
        return (self.emit(ops.gru_step, gates, product, hidden),)


class _Plain:
    """h = tanh(…) or ReLU(…)."""

    def __init__(self, emit: _Emit, weights: _Weights, activation: Any) -> None:
        self.emit = emit
        self.weights = weights
        self.bias = weights.bias(emit)
        self.activation = activation

    def step(self, gates: fx.Node, state: State) -> State:
        (hidden,) = state
        return (
            self.emit(self.activation, _plus_hidden(self.emit, gates, self.weights.hidden, hidden)),
        )


_Cell = _Lstm | _Gru | _Plain
_MakeCell = Callable[[_Emit, _Weights], _Cell]
_tanh: _MakeCell = partial(_Plain, activation=aten.tanh.default)
_relu: _MakeCell = partial(_Plain, activation=aten.relu.default)


def _plus_hidden(emit: _Emit, gates: fx.Node, weight: fx.Node, hidden: fx.Node | None) -> fx.Node:
    """Return the sum of both products; there is one where the hidden state is zero."""
    if hidden is None:
        return gates
    product = emit(aten.linear.default, hidden, weight, None)
    return emit(aten.add.Tensor, product, gates)


def _layers(module: fx.GraphModule, node: fx.Node, cell: _MakeCell) -> None:
    """``aten.lstm.input`` and its like: (x, state, parameters, biased, layers, …)."""
    x, given, parameters, biased, count, _, _, two_ways, batch_first = node.args
    assert isinstance(x, fx.Node) and isinstance(parameters, Sequence) and isinstance(count, int)
    axis = 1 if batch_first else 0
    steps = x.meta["val"].shape[axis] if "val" in x.meta else None
    if not isinstance(steps, int):
        return  # sequences of any length are no list of steps
    emit = _Emit(module=module, before=node)
    starts = list(given) if isinstance(given, (list, tuple)) else [given]
    directions = 2 if two_ways else 1
    each = len(parameters) // (count * directions)
    ends: list[State] = []
    ways: list[list[fx.Node]] = []
    for layer in range(count):
        ways = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = _weights(parameters[index * each : (index + 1) * each], bool(biased))
            start = tuple(
                None if emit.is_zero(s) else emit(aten.select.int, s, 0, index) for s in starts
            )
            order = range(steps)[:: -1 if direction else 1]
            hiddens, end = _run(emit, cell(emit, weights), x, axis, order, start)
            ways.append(hiddens)
            ends.append(end)
        x = _side_by_side(emit, [_stacked(emit, hiddens, axis) for hiddens in ways])
    for pick in list(node.users):
        which: Any = pick.args[1]
        if which == 0:
            _steps_to_readers(emit, pick, ways, axis)
        result = _stacked(emit, [end[which - 1] for end in ends], 0) if which else x
        pick.replace_all_uses_with(result)
        module.graph.erase_node(pick)
    module.graph.erase_node(node)


def _weights(parameters: Sequence[Any], biased: bool) -> _Weights:
    inner, hidden, *rest = parameters
    biases = rest[:2] if biased else [None, None]
    projection = rest[2 if biased else 0 :]
    return _Weights(
        inner=inner,
        hidden=hidden,
        inner_bias=biases[0],
        hidden_bias=biases[1],
        projection=projection[0] if projection else None,
    )


def _run(
    emit: _Emit, cell: _Cell, x: fx.Node, axis: int, order: Sequence[int], state: State
) -> tuple[list[fx.Node], State]:
    """Return the hidden states, in the order of the inputs, and the last state."""
    gates = emit(aten.linear.default, x, cell.weights.inner, cell.bias)
    hiddens: dict[int, Any] = {}
    for step in order:
        state = cell.step(emit(aten.select.int, gates, axis, step), state)
        hiddens[step] = state[0]
    return [hiddens[step] for step in range(len(order))], state


def _stacked(emit: _Emit, values: Sequence[fx.Node | None], axis: int) -> fx.Node:
    parts = [emit(aten.unsqueeze.default, value, axis) for value in values]
    return parts[0] if len(parts) == 1 else emit(aten.cat.default, parts, axis)


def _side_by_side(emit: _Emit, parts: Sequence[fx.Node]) -> fx.Node:
    """Join what both directions give; one is alone."""
    return parts[0] if len(parts) == 1 else emit(aten.cat.default, list(parts), -1)


def _steps_to_readers(
    emit: _Emit, pick: fx.Node, ways: Sequence[Sequence[fx.Node]], axis: int
) -> None:
    """Who takes one step of the sequence, often the last one, needs no sequence."""
    for reader in list(pick.users):
        if not is_call(reader, aten.select.int) or not isinstance(reader.args[2], int):
            continue
        if reader.args[1] in (axis, axis - 3):
            hidden = _side_by_side(emit, [hiddens[reader.args[2]] for hiddens in ways])
            reader.replace_all_uses_with(hidden)
            emit.module.graph.erase_node(reader)


def _cell(module: fx.GraphModule, node: fx.Node, cell: _MakeCell) -> None:
    """``aten.lstm_cell`` and its like: one step."""
    x, given, inner, hidden = node.args[:4]
    biases = [argument(node, 4 + i, name) for i, name in enumerate(("b_ih", "b_hh"))]
    assert isinstance(inner, fx.Node) and isinstance(hidden, fx.Node)
    emit = _Emit(module=module, before=node)
    weights = _Weights(
        inner=inner,
        hidden=hidden,
        inner_bias=biases[0],
        hidden_bias=biases[1],
    )
    made = cell(emit, weights)
    starts = list(given) if isinstance(given, (list, tuple)) else [given]
    state = tuple(None if emit.is_zero(start) else start for start in starts)
    results = made.step(emit(aten.linear.default, x, inner, made.bias), state)
    if len(results) == 1:
        node.replace_all_uses_with(results[0])
    else:
        for pick in list(node.users):
            pick.replace_all_uses_with(results[pick.args[1]])
            module.graph.erase_node(pick)
    module.graph.erase_node(node)


RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    aten.lstm.input: partial(_layers, cell=_Lstm),
    aten.gru.input: partial(_layers, cell=_Gru),
    aten.rnn_tanh.input: partial(_layers, cell=_tanh),
    aten.rnn_relu.input: partial(_layers, cell=_relu),
    aten.lstm_cell.default: partial(_cell, cell=_Lstm),
    aten.gru_cell.default: partial(_cell, cell=_Gru),
    aten.rnn_tanh_cell.default: partial(_cell, cell=_tanh),
    aten.rnn_relu_cell.default: partial(_cell, cell=_relu),
}

"""LSTM, GRU and RNN, as PyTorch's operators of the same names.

ONNX stacks directions along the first axis of each weight, orders gates otherwise than PyTorch, and
knows a reverse direction alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.program import Node

aten = torch.ops.aten
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_Results = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """The operands that all three have in common.

    Args:
        node: The call.
        x: [T, B, I], or [B, T, I] where ``batch_first``.
        order: Where PyTorch's gates stand among those of ONNX.
        weights: W [D, G·H, I] and R [D, G·H, H].
        bias: [D, 2·G·H], those of W before those of R; None for zeros.
    """

    node: Node
    x: Tensor
    order: Sequence[int]
    weights: tuple[Tensor, Tensor]
    bias: Tensor | None

    @property
    def batch_first(self) -> bool:
        return bool(self.node.get("layout", 0))

    @property
    def backwards(self) -> bool:
        """True where the only direction is the reverse one."""
        return self.node.get("direction", "forward") == "reverse"

    @property
    def directions(self) -> int:
        return _DIRECTIONS[self.node.get("direction", "forward")]

    def run(self, operator: Any, states: Sequence[Tensor | None]) -> _Results:
        """Call PyTorch's ``operator``; return outputs as ONNX has them."""
        time = 1 if self.batch_first else 0
        x = self.x.flip(time) if self.backwards else self.x
        starts = [self._state(state) for state in states]
        start = starts[0] if len(starts) == 1 else starts
        biased = self.bias is not None
        fixed = (biased, 1, 0.0, False, self.directions == 2)
        y, *ends = operator(x, start, self._parameters(), *fixed, batch_first=self.batch_first)
        y = y.flip(time) if self.backwards else y
        y = y.unflatten(-1, (self.directions, -1))  # [T, B, D, H], or [B, T, D, H]
        if self.batch_first:
            return (y, *(end.transpose(0, 1) for end in ends))
        return (y.transpose(1, 2), *ends)

    def _state(self, state: Tensor | None) -> Tensor:
        """Return a state as [D, B, H]."""
        if state is None:
            batch = self.x.shape[0 if self.batch_first else 1]
            return self.x.new_zeros((self.directions, batch, self.weights[1].shape[-1]))
        return state.transpose(0, 1) if self.batch_first else state

    def _parameters(self) -> list[Tensor]:
        """Return weight_ih, weight_hh, bias_ih and bias_hh of each direction."""
        parameters = []
        for direction in range(self.directions):
            values = [weight[direction] for weight in self.weights]
            if self.bias is not None:
                values += self.bias[direction].chunk(2)
            parameters += [self._ordered(value) for value in values]
        return parameters

    def _ordered(self, value: Tensor) -> Tensor:
        if len(self.order) == 1:
            return value
        gates = value.chunk(len(self.order))
        return torch.cat([gates[gate] for gate in self.order])


def lstm(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> _Results:
    """Gates i, o, f and g; PyTorch has i, f, g and o."""
    _check(node, x, lengths, ["Sigmoid", "Tanh", "Tanh"])
    if peepholes is not None:
        raise node.unsupported("peepholes", "train the model without them")
    if node.get("input_forget", 0):
        raise node.unsupported("input_forget 1")
    layer = _Layer(node=node, x=x, order=(0, 2, 3, 1), weights=(w, r), bias=b)
    return layer.run(aten.lstm.input, [h, c])


def gru(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> _Results:
    """Gates z, r and n; PyTorch has r, z and n."""
    _check(node, x, lengths, ["Sigmoid", "Tanh"])
    operator = aten.gru.input if node.get("linear_before_reset", 0) else _reset_first
    return _Layer(node=node, x=x, order=(1, 0, 2), weights=(w, r), bias=b).run(operator, [h])


def _reset_first(
    x: Tensor,
    start: Tensor,
    parameters: Sequence[Tensor],
    biased: bool,
    *_: Any,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """Like ``aten.gru.input``, but the state is reset before its product, not the product."""
    steps = x.transpose(0, 1) if batch_first else x
    outputs, ends = [], []
    each = 4 if biased else 2
    for direction, h in enumerate(start):
        w_ih, w_hh, *biases = parameters[direction * each : (direction + 1) * each]
        split = [2 * h.shape[-1], h.shape[-1]]
        inner = F.linear(steps, w_ih, biases[0] if biased else None).split(split, -1)
        weights = w_hh.split(split)
        added = biases[1].split(split) if biased else (None, None)
        hiddens = []
        for step in range(len(steps))[:: -1 if direction else 1]:
            gates = inner[0][step] + F.linear(h, weights[0], added[0])
            r, z = torch.sigmoid(gates).chunk(2, -1)
            n = torch.tanh(inner[1][step] + F.linear(r * h, weights[1], added[1]))
            h = n + z * (h - n)
            hiddens.append(h)
        outputs.append(torch.stack(hiddens[:: -1 if direction else 1], 1 if batch_first else 0))
        ends.append(h)
    return torch.cat(outputs, -1), torch.stack(ends)


def rnn(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    h: Tensor | None = None,
) -> _Results:
    """One gate, of tanh or ReLU."""
    relu = set(node.get("activations", ["Tanh"])) == {"Relu"}
    _check(node, x, lengths, ["Relu" if relu else "Tanh"])
    operator = aten.rnn_relu.input if relu else aten.rnn_tanh.input
    return _Layer(node=node, x=x, order=(0,), weights=(w, r), bias=b).run(operator, [h])


def _check(node: Node, x: Tensor, lengths: Any, activations: Sequence[str]) -> None:
    """Refuse what PyTorch's operators do not compute."""
    directions = _DIRECTIONS[node.get("direction", "forward")]
    given = node.get("activations", [*activations] * directions)
    if [name.lower() for name in given] != [name.lower() for name in activations] * directions:
        raise node.unsupported(f"activations {given}")
    if node.get("clip") is not None:
        raise node.unsupported("clip")
    steps = x.shape[1 if node.get("layout", 0) else 0]
    if lengths is not None and any(length != steps for length in lengths.reshape(-1).tolist()):
        raise node.unsupported("sequences shorter than the input", "cut or pad the input instead")


RECURRENT = {
    "LSTM": Operator(function=lstm, known=(4,)),
    "GRU": Operator(function=gru, known=(4,)),
    "RNN": Operator(function=rnn, known=(4,)),
}

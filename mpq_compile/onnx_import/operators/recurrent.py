"""LSTM, GRU and RNN, as PyTorch's operators of the same names.

ONNX stacks directions along the first axis of each weight, orders gates otherwise than PyTorch, and
knows a reverse direction alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.program import Node

aten = torch.ops.aten
_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# Where PyTorch's gates stand among those of ONNX: i, o, f, g and z, r, n.
_GATES: dict[str, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_Results = tuple[Tensor, ...]


def parameters_of(kind: str, w: Tensor, r: Tensor, b: Tensor | None) -> list[list[Tensor]]:
    """Return weight_ih, weight_hh and, if any, bias_ih and bias_hh of each direction.

    Args:
        kind: "LSTM", "GRU" or "RNN".
        w, r: [D, G·H, I] and [D, G·H, H].
        b: [D, 2·G·H], those of W before those of R; None for zeros.
    """
    found = []
    for direction in range(w.shape[0]):
        values = [w[direction], r[direction]]
        if b is not None:
            middle = b.shape[1] // 2
            values += [b[direction, :middle], b[direction, middle:]]
        found.append([_ordered(value, _GATES[kind]) for value in values])
    return found


def _ordered(value: Tensor, order: Sequence[int]) -> Tensor:
    width = value.shape[0] // len(order)
    gates = [value[gate * width : (gate + 1) * width] for gate in order]
    return gates[0] if len(gates) == 1 else torch.cat(gates)


def layer(
    node: Node, kind: str, x: Tensor, states: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> _Results:
    """Return outputs and last states as ONNX has them, of parameters as PyTorch has them.

    Args:
        node: The call, for its attributes.
        kind: "LSTM", "GRU" or "RNN".
        x: [T, B, I], or [B, T, I] with layout 1.
        states: Hidden and, of an LSTM, cell state; None for zeros.
        parameters: Of each direction, one after the other.
    """
    direction = node.get("direction", "forward")
    count, batch_first = _DIRECTIONS[direction], bool(node.get("layout", 0))
    time = 1 if batch_first else 0
    backwards = direction == "reverse"
    hidden = parameters[1].shape[1]
    starts = [_start(x, state, count, hidden, batch_first) for state in states]
    y, *ends = _operator(node, kind)(
        x.flip(time) if backwards else x,
        starts if len(starts) > 1 else starts[0],
        parameters,
        len(parameters) // count > 2,
        1,
        0.0,
        False,
        count == 2,
        batch_first=batch_first,
    )
    y = y.flip(time) if backwards else y
    y = y.unflatten(-1, (count, hidden))  # [T, B, D, H], or [B, T, D, H]
    if batch_first:
        return (y, *(end.transpose(0, 1) for end in ends))
    return (y.transpose(1, 2), *ends)


def _start(
    x: Tensor, state: Tensor | None, directions: int, hidden: int, batch_first: bool
) -> Tensor:
    """Return a state as [D, B, H]."""
    if state is None:
        return x.new_zeros((directions, x.shape[0 if batch_first else 1], hidden))
    return state.transpose(0, 1) if batch_first else state


def _operator(node: Node, kind: str) -> Any:
    if kind == "LSTM":
        return aten.lstm.input
    if kind == "GRU":
        return aten.gru.input if node.get("linear_before_reset", 0) else _reset_first
    return aten.rnn_relu.input if _is_relu(node) else aten.rnn_tanh.input


def _is_relu(node: Node) -> bool:
    return {name.lower() for name in node.get("activations", ["Tanh"])} == {"relu"}


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


def check(
    node: Node,
    kind: str,
    steps: int | None,
    lengths: np.ndarray | Tensor | None,
    peepholes: object,
) -> None:
    """Refuse what PyTorch's operators do not compute.

    Args:
        steps: Length of the input; None where it is free.
        lengths: Those of the sequences, if given.
        peepholes: The weights of them, if given.
    """
    plain = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[kind]
    plain = ["relu"] if kind == "RNN" and _is_relu(node) else plain
    expected = plain * _DIRECTIONS[node.get("direction", "forward")]
    given = [name.lower() for name in node.get("activations", expected)]
    if given != expected:
        raise node.unsupported(f"activations {given}", f"train it with {expected}")
    if node.get("clip") is not None:
        raise node.unsupported("clip")
    if node.get("input_forget", 0):
        raise node.unsupported("input_forget 1")
    if peepholes is not None:
        raise node.unsupported("peepholes", "train the model without them")
    if lengths is not None and any(int(length) != steps for length in lengths.reshape(-1)):
        raise node.unsupported("sequences shorter than the input", "cut or pad the input instead")


def _of(kind: str) -> Operator:
    """Return the operator of ONNX whose weights need not be constants."""

    def function(
        node: Node,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: np.ndarray | None = None,
        h: Tensor | None = None,
        c: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> _Results:
        check(node, kind, x.shape[1 if node.get("layout", 0) else 0], lengths, peepholes)
        parameters = sum(parameters_of(kind, w, r, b), [])
        return layer(node, kind, x, [h, c] if kind == "LSTM" else [h], parameters)

    return Operator(function=function, known=(4,))


def recurrent(
    node: Node, x: Tensor, h: Tensor | None, c: Tensor | None, *parameters: Tensor
) -> _Results:
    """One layer with PyTorch's parameters: ours, made by ``recurrences``."""
    kind = node.get("kind")
    return layer(node, kind, x, [h, c] if kind == "LSTM" else [h], parameters)


RECURRENT = {
    "LSTM": _of("LSTM"),
    "GRU": _of("GRU"),
    "RNN": _of("RNN"),
    "Recurrent": Operator(function=recurrent),
}

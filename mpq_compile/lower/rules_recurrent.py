"""Steps of recurrent layers: conversions of the hidden state become part of one kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import fx

from mpq_compile.kernels.elementwise_workload import RecurrentStepWorkload
from mpq_compile.lower.conversions import IDENTITY, conversion_record, converts
from mpq_compile.lower.emit import Value

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def lstm_step(lowering: Lowering, node: fx.Node) -> list[Value]:
    """Call the kernel of ``ops.lstm_step``: hidden and cell state."""
    picked = [user for user in node.users if user.args[1] == 0]
    readers = [reader for pick in picked for reader in pick.users]
    hidden, cell = _step(lowering, node, "lstm", readers)
    return [hidden, cell]


def gru_step(lowering: Lowering, node: fx.Node) -> Value:
    """Call the kernel of ``ops.gru_step``: the hidden state."""
    (hidden,) = _step(lowering, node, "gru", list(node.users))
    return hidden


def _step(
    lowering: Lowering, node: fx.Node, kind: Literal["lstm", "gru"], readers: list[fx.Node]
) -> list[Value]:
    """Return the hidden state as float32, if any reader wants it so, and an LSTM's cell state."""
    inner, outer, state = node.args
    view = lowering.value(inner).view
    others: list[Any] = [lowering.value(n) for n in (outer, state) if n is not None]
    converted = [reader for reader in readers if converts(reader)]
    kept = len(converted) < len(readers) or not readers
    rows, gates = view.shape[0], 4 if kind == "lstm" else 3
    workload = RecurrentStepWorkload(
        kind=kind,
        rows=rows,
        hidden=view.shape[1] // gates,
        inner_size=view.size,
        inner_stride=view.strides[0],
        outer="none" if outer is None else "shared" if len(others[0].shape) == 1 else "each",
        carried=state is not None,
        outputs=(*(["fp32"] if kept else []), *(str(reader.args[5]) for reader in converted)),  # type: ignore[arg-type]
    )
    start = np.zeros_like(IDENTITY)
    start[0] = view.offset
    records = [start, *([IDENTITY] if kept else []), *(conversion_record(r) for r in converted)]
    arguments = [view.var, *(lowering.emitter.logical(value).var for value in others)]
    arguments.append(lowering.emitter.words(np.concatenate(records)))
    lowering.kernel_of[node.name] = workload.key
    shape = (rows, workload.hidden)
    formats = [*workload.outputs, *(["fp32"] if kind == "lstm" else [])]
    results = lowering.emitter.kernel_outputs(workload, arguments, shape, formats)
    for reader, result in zip(converted, results[kept:], strict=False):
        lowering.values[reader] = result
    return [results[0], *results[len(workload.outputs) :]]

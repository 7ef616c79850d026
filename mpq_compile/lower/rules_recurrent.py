"""Steps of recurrent layers: products in, states out, float32 all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from mpq_compile.kernels.attention_workload import Layout
from mpq_compile.kernels.elementwise_workload import GruStepWorkload, LstmStepWorkload
from mpq_compile.lower.emit import Value

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def lstm_step(lowering: Lowering, node: fx.Node) -> list[Value]:
    """Call the kernel of ``ops.lstm_step``: hidden and cell state."""
    gates, cell = node.args
    operands = [lowering.value(n) for n in (gates, cell) if n is not None]
    rows, width = operands[0].shape
    workload = LstmStepWorkload(rows=rows, hidden=width // 4, carried=cell is not None)
    lowering.kernel_of[node.name] = workload.key
    arguments = [lowering.emitter.logical(value).var for value in operands]
    return lowering.emitter.kernel_results(workload, arguments, [((rows, width // 4), "fp32")] * 2)


def gru_step(lowering: Lowering, node: fx.Node) -> Value:
    """Call the kernel of ``ops.gru_step``: the hidden state."""
    inner, outer, hidden = node.args
    view = lowering.value(inner).view
    others = [lowering.value(n) for n in (outer, hidden) if n is not None]
    rows, width = view.shape
    workload = GruStepWorkload(
        rows=rows,
        hidden=width // 3,
        inner=Layout(size=view.size, strides=(0, 0, view.strides[0]), offset=view.offset),
        outer="none" if outer is None else "shared" if len(others[0].shape) == 1 else "each",
        carried=hidden is not None,
    )
    lowering.kernel_of[node.name] = workload.key
    arguments = [view.var, *(lowering.emitter.logical(value).var for value in others)]
    return lowering.emitter.kernel(workload, arguments, (rows, width // 3), "fp32", False)

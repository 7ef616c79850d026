"""Which convolutions store their output with the padding that the next one reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from mpq_compile.kernels.geometry import reads_past_its_end
from mpq_compile.kernels.workload import ConvWorkload
from mpq_compile.lower.workloads import conv_workload, unpacked_weight_bits
from mpq_compile.quant import ops as qops

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering

Pads = tuple[int, int, int, int]
COMPUTE = {"u8": "int8", "bf16": "bf16", "fp32": "fp32"}


def workload_of(
    lowering: Lowering, node: fx.Node, fmt: str, residual: str | None = None
) -> ConvWorkload:
    """Return the workload of a convolution node that reads its input in ``fmt``."""
    record = lowering.records.get(node.name)
    bits = 8 if record is None else unpacked_weight_bits(record.candidate, lowering.emitter.tier)
    return conv_workload(
        lowering.shape(node.args[0]),
        tuple(lowering.tensor(node.args[1]).shape),
        tuple(node.args[5:10]),
        COMPUTE[fmt],
        bits,
        str(node.args[13]),
        residual,
    )


def border_for(lowering: Lowering, node: fx.Node) -> Pads:
    """Return the border of a convolution's output: the padding that all its readers ask for.

    There is none where anything but convolutions reads the output, where their paddings differ,
    or where one reads past the end of its input and copies it anyway.
    """
    wanted = {_wanted(lowering, node, user) for user in node.users}
    return wanted.pop() if len(wanted) == 1 else (0, 0, 0, 0)


def _wanted(lowering: Lowering, node: fx.Node, user: fx.Node) -> Pads:
    nothing = (0, 0, 0, 0)
    if user.target is not qops.QCONV2D or any(node is value for value in _others(user)):
        return nothing
    workload = workload_of(lowering, user, str(node.args[13]))
    spread = workload.input_dilation != (1, 1) or min(workload.padding) < 0
    if spread or reads_past_its_end(workload, lowering.emitter.tier):
        return nothing
    return workload.padding


def _others(user: fx.Node) -> list[Any]:
    """Return the operands of a convolution beside its input."""
    return list(user.args[1:5])

"""Frames of a volume, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from mpq_compile.kernels.frames import FramesWorkload
from mpq_compile.lower.emit import Value

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def frames_beside(lowering: Lowering, node: fx.Node) -> Value:
    """Call the kernel of ``ops.frames_beside``."""
    time, taps, stride, dilation, before, _, groups, fill = node.args[1:9]
    x = lowering.emitter.channels_last(lowering.value(node.args[0]))
    shape = lowering.shape(node)
    batch = x.shape[0] // time
    workload = FramesWorkload(
        batch=batch,
        time=time,
        frames=shape[0] // batch,
        taps=taps,
        stride=stride,
        dilation=dilation,
        before=before,
        groups=groups,
        pixels=x.shape[2] * x.shape[3],
        channels=x.shape[1],
        dtype=x.fmt,  # type: ignore[arg-type]
    )
    lowering.kernel_of[node.name] = workload.key
    record = lowering.emitter.words(np.array([fill], np.int32))
    return lowering.emitter.kernel(workload, [x.var, record], shape, x.fmt, True)

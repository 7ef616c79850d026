"""Layer and RMS norm: the conversions around them become part of one kernel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from mpq_compile.kernels.elementwise_workload import NormWorkload
from mpq_compile.lower import rules_float
from mpq_compile.lower.conversions import IDENTITY, INFINITE, conversion_record, converts
from mpq_compile.lower.emit import Value
from mpq_compile.passes.base import argument, constant

if TYPE_CHECKING:
    from mpq_compile.lower.lowering import Lowering


def layer_norm(lowering: Lowering, node: fx.Node) -> Any:
    """Lower ``aten.layer_norm``."""
    weight, bias = argument(node, 2, "weight"), argument(node, 3, "bias")
    epsilon: Any = argument(node, 4, "eps", 1e-5)
    return _norm(lowering, node, (weight, bias), float(epsilon), True)


def rms_norm(lowering: Lowering, node: fx.Node) -> Any:
    """Lower ``aten.rms_norm``."""
    epsilon: Any = argument(node, 3, "eps")
    if epsilon is None:
        epsilon = torch.finfo(torch.float32).eps
    return _norm(lowering, node, (argument(node, 2, "weight"), None), float(epsilon), False)


def _norm(
    lowering: Lowering, node: fx.Node, columns: tuple[Any, Any], epsilon: float, centred: bool
) -> Any:
    """Call the kernel; conversions of its result that are all its readers' are lowered too."""
    if any(n is not None and constant(lowering.graph, n) is None for n in columns):
        return rules_float.float_op(lowering, node)  # columns that the network computes
    source, record = _source(lowering, node.args[0])
    shape = lowering.shape(node)
    size = math.prod(int(n) for n in node.args[1])
    converted = [user for user in node.users if converts(user)]
    kept = len(converted) < len(node.users)
    workload = NormWorkload(
        rows=math.prod(shape) // size,
        columns=size,
        epsilon=epsilon,
        centred=centred,
        scaled=columns[0] is not None,
        shifted=columns[1] is not None,
        source=source.fmt,  # type: ignore[arg-type]
        outputs=(*(["fp32"] if kept else []), *(str(user.args[5]) for user in converted)),  # type: ignore[arg-type]
    )
    records = [
        record,
        *([IDENTITY] if kept else []),
        *(conversion_record(user) for user in converted),
    ]
    arguments = [source.var, lowering.emitter.words(np.concatenate(records))]
    arguments += [lowering.value(n).var for n in columns if n is not None]
    lowering.kernel_of[node.name] = workload.key
    results = lowering.emitter.kernel_outputs(workload, arguments, shape, workload.outputs)
    for user, result in zip(converted, results[kept:], strict=True):
        lowering.values[user] = result
    return results[0]


def _source(lowering: Lowering, node: Any) -> tuple[Value, np.ndarray]:
    """Return what the kernel reads: the input, or codes or bf16 that are widened to it."""
    if converts(node) and node.args[5] == "fp32" and tuple(node.args[3]) == INFINITE:
        return lowering.emitter.logical(lowering.value(node.args[0])), conversion_record(node)
    return lowering.emitter.logical(lowering.value(node)), IDENTITY

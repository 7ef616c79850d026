"""Quantized network → encodings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpq_compile.integrations.encodings.file import write_encodings
from mpq_compile.integrations.subject import materialized_of
from mpq_compile.passes.materialized import Materialized, SiteRecord
from mpq_compile.passes.network import prepare
from mpq_compile.quant.weights import QuantizedWeight
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.types import Plan, QParams


def export_encodings(
    source: CompiledNetwork | Plan,
    path: str | Path,
    model: Any = None,
    example_inputs: Any = None,
    calibration: Any = None,
    *,
    allow_float: bool = False,
) -> Path:
    """Write bits, scales and zero points of every site and tensor as JSON; return the path.

    Beside it, with the suffix ``.safetensors``, are the integer weights, whose roundings no scale
    tells, and the biases with what was fitted to them. :func:`mpq_compile.from_encodings` builds
    the same network from both.

    Args:
        source: A network of :func:`mpq_compile.compile`, or a plan, of which nothing is built.
        path: The ``.json`` file.
        model, example_inputs, calibration: With a plan: what it was made of.
        allow_float: With a plan: as for :func:`mpq_compile.plan`.

    Raises:
        MpqError: The network was loaded from disk, without the model.
        PlanError: A plan lacks its model or data, or does not fit them.
    """
    graph = materialized_of(source, model, example_inputs, calibration, allow_float)
    records = graph.records.values()
    activations = [_activation(*key, qparams) for key, qparams in sorted(graph.ranges.items())]
    body = {
        "param_encodings": [_parameter(record) for record in records],
        "activation_encodings": activations,
    }
    tensors = {**_balanced(graph)}
    for record in records:
        if isinstance(record.weight, QuantizedWeight):
            tensors[f"codes/{record.site.id}"] = record.weight.codes
            tensors[f"bias/{record.site.id}"] = record.bias
    write_encodings(Path(path), body, tensors)
    return Path(path)


def _parameter(record: SiteRecord) -> dict[str, Any]:
    entry = {"name": record.site.id, "candidate": record.candidate.name}
    if not isinstance(record.weight, QuantizedWeight):
        return {**entry, "dtype": "float", "bitwidth": record.candidate.weight_bits}
    spec = record.weight.spec
    return {
        **entry,
        "dtype": "int",
        "bitwidth": spec.bits,
        "is_symmetric": True,
        "axis": 0,
        "block_size": spec.group_size,
        "scale": record.weight.scale.tolist(),
        "zero_point": 0,
    }


def _activation(node: str, bits: int, qparams: QParams) -> dict[str, Any]:
    return {
        "name": node,
        "dtype": "int",
        "bitwidth": bits,
        "is_symmetric": False,
        "scale": qparams.scale,
        "zero_point": qparams.zero_point,
    }


def _balanced(graph: Materialized) -> dict[str, Tensor]:
    """Return the constants into which scales of channels were moved."""
    plain = prepare(graph.network.captured).constants()
    constants = graph.network.constants().items()
    return {
        f"constant/{name}": value.detach()
        for name, value in constants
        if value is not None and not _equal(value, plain.get(name))
    }


def _equal(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(value, other)

"""Exports networks to ONNX, runs them in ONNX Runtime and compares them with the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_session import exact_session
from torch import Tensor, nn

from mpq_compile.deploy import complete_assignment
from mpq_compile.integrations.qdq.graph import Export
from mpq_compile.passes.materialized import Materialized
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session


def materialized(
    model: nn.Module, inputs: Sequence[Tensor], assignment: str | Mapping[str, str]
) -> Materialized:
    """Return the quantized graph; nothing is built or searched."""
    example = tuple(value[:1] for value in inputs)
    # An accelerator, so that any width may be asked for.
    session = Session(
        model, example, [tuple(inputs)], "bit_serial", recipe=Recipe(rounding="nearest")
    )
    return session.materialized(complete_assignment(session.network, assignment))


def run(model: onnx.ModelProto | bytes, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    """Run a model on the CPU; skip where ONNX Runtime is absent."""
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = exact_session(runtime, content, threads=1)
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, dict(zip(names, [x.numpy() for x in inputs], strict=True)))


def steps_off(found: Sequence[Any], expected: Sequence[Tensor]) -> np.ndarray:
    """Return how far outputs are apart, in steps of eight bits over the range of each output."""
    off = []
    for ours, oracle in zip(found, expected, strict=True):
        theirs = oracle.numpy()
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        step = (theirs.max() - theirs.min()) / 255
        off.append((np.abs(ours - theirs) / step).reshape(-1))
    return np.concatenate(off)


def compare(graph: Materialized, inputs: Sequence[Tensor], **how: Any) -> np.ndarray:
    """Return how far ONNX Runtime is from the oracle, in steps."""
    with torch.no_grad():
        expected = graph.module(*inputs)
    return steps_off(run(Export(graph, **how).model(), inputs), expected)

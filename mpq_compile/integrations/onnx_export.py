"""QDQ ONNX of a quantized network, for ONNX Runtime and what else reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpq_compile.errors import PlanError
from mpq_compile.integrations.qdq.graph import Export
from mpq_compile.integrations.qdq.writer import OPSET, OPSET_INT2
from mpq_compile.integrations.subject import materialized_of
from mpq_compile.passes.materialized import Materialized
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.types import Plan


def export_onnx(
    source: CompiledNetwork | Plan,
    path: str | Path,
    model: Any = None,
    example_inputs: Any = None,
    calibration: Any = None,
    *,
    opset: int | None = None,
    allow_float: bool = False,
) -> Path:
    """Write a network as ONNX with QuantizeLinear and DequantizeLinear; return the path.

    Weights are stored at 2, 4 or 8 bits, whichever is the least that holds them, with one scale a
    channel or a block. Each tensor that the deployed network stores as codes is quantized and
    dequantized; what is between is float operators, which a runtime fuses into integer ones.

    Args:
        source: A network of :func:`mpq_compile.compile`, or a plan, of which nothing is built.
        path: The ``.onnx`` file.
        model, example_inputs, calibration: With a plan: what it was made of.
        opset: Operator set, 21 to 25. None is 21, or 25 where a weight has two bits, which are
            stored in four before that.
        allow_float: With a plan: as for :func:`mpq_compile.plan`.

    Raises:
        MpqError: The network was loaded from disk, without the model.
        PlanError: A plan lacks its model or data, or ``opset`` is out of range.
        UnsupportedOpError: An operator that runs in float has no form in ONNX here.
    """
    graph = materialized_of(source, model, example_inputs, calibration, allow_float)
    content = Export(graph, _opset_of(graph, opset)).model().SerializeToString()
    Path(path).write_bytes(content)
    return Path(path)


def _opset_of(graph: Materialized, opset: int | None) -> int:
    if opset is None:
        widths = {record.candidate.weight_bits for record in graph.records.values()}
        return OPSET_INT2 if 2 in widths else OPSET
    if not OPSET <= opset <= OPSET_INT2:
        raise PlanError(
            "this operator set cannot be written",
            where="opset",
            expected=f"{OPSET} to {OPSET_INT2}",
            found=opset,
            remedy="leave it out",
        )
    return opset

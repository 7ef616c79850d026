"""QDQ ONNX of a quantized network, for ONNX Runtime and what else reads it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import onnx

from mpq_compile.errors import PlanError, nearest
from mpq_compile.integrations.qdq.graph import INEXACT, Export
from mpq_compile.integrations.subject import materialized_of
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.types import Plan

log = logging.getLogger(__name__)
_BIASES = ("float32", "int32")


def export_onnx(
    source: CompiledNetwork | Plan,
    path: str | Path,
    model: Any = None,
    example_inputs: Any = None,
    calibration: Any = None,
    *,
    biases: str = "float32",
    exact: bool = False,
    allow_float: bool = False,
) -> Path:
    """Write a network as ONNX with QuantizeLinear and DequantizeLinear; return the path.

    Operator set 21. Weights are INT4 up to four bits and INT8 above, with one scale a channel or a
    block. Each tensor that the deployed network stores as codes is quantized and
    dequantized; what is between is float operators, which a runtime fuses into integer ones.

    Args:
        source: A network of :func:`mpq_compile.compile`, or a plan, of which nothing is built.
        path: The ``.onnx`` file.
        model, example_inputs, calibration: With a plan: what it was made of.
        biases: "float32" adds them as the deployed network does; "int32" rounds them to the units
            of integer accumulators, off by at most half a unit, which integer kernels want: ONNX
            Runtime then runs convolutions and Gemms of eight bits as integers.
        exact: Write integer products (ConvInteger, MatMulInteger) and each operation behind them as
            a node of its own, instead of float operators between QuantizeLinear and
            DequantizeLinear: what the deployed network computes in integers then comes out bit for
            bit, in any runtime. Meant for comparing, not for speed: nothing is fused. The model's
            property "mpq.inexact" lists, as JSON, the nodes of ``net.materialized`` that have no
            such form and may differ by a step of their codes; they are logged.
        allow_float: With a plan: as for :func:`mpq_compile.plan`.

    Raises:
        MpqError: The network was loaded from disk, without the model.
        PlanError: A plan lacks its model or data, or does not fit them; or ``biases`` is unknown,
            or rounded where the export is to be exact.
        UnsupportedOpError: An operator that runs in float has no form in ONNX here.
    """
    if biases not in _BIASES:
        raise PlanError(
            f"unknown kind of biases {biases!r}",
            where="biases",
            expected=f"one of {', '.join(_BIASES)}",
            found=repr(biases),
            remedy=nearest(biases, _BIASES),
        )
    if exact and biases != "float32":
        raise PlanError(
            "biases that are rounded to int32 are not those of the deployed network",
            where="exact",
            expected='biases="float32"',
            found=f"biases={biases!r}",
            remedy="leave one of the two out",
        )
    graph = materialized_of(source, model, example_inputs, calibration, allow_float)
    export = Export(graph, biases == "int32", exact)
    Path(path).write_bytes(export.model().SerializeToString())
    if export.inexact:
        log.info("no exact form: %s", ", ".join(export.inexact))
    return Path(path)


def inexact_nodes(path: Path) -> list[str]:
    """Return the nodes of an exact model that have no exact form."""
    model = onnx.load(path, load_external_data=False)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    return [str(name) for name in json.loads(properties.get(INEXACT, "[]"))]

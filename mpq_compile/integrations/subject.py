"""What is exported: a network that was built, or a plan with the model and data that it needs."""

from __future__ import annotations

from typing import Any

from mpq_compile.deploy import complete_assignment
from mpq_compile.errors import PlanError
from mpq_compile.passes.materialized import Materialized
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session
from mpq_compile.types import Plan

# A plan's codes do not depend on the target, which may be out of reach: any profile does.
_TARGET = "generic"


def materialized_of(
    source: CompiledNetwork | Plan,
    model: Any = None,
    example_inputs: Any = None,
    calibration: Any = None,
    allow_float: bool = False,
) -> Materialized:
    """Return the quantized graph of a network, or that of a plan; for a plan nothing is built.

    Raises:
        MpqError: The network was loaded from disk, without the model.
        PlanError: A plan comes without model and data, or does not fit the model.
    """
    if isinstance(source, CompiledNetwork):
        graph: Materialized = source.materialized
        return graph
    if not isinstance(source, Plan) or model is None or calibration is None:
        raise PlanError(
            "there is nothing to export",
            expected="a network of mpq.compile or mpq.assign; or a plan, its model, example inputs "
            "and calibration data",
            found="a plan alone" if isinstance(source, Plan) else type(source).__name__,
            remedy="pass model, example_inputs and calibration with the plan",
        )
    session = Session(
        model,
        example_inputs,
        calibration,
        _TARGET,
        recipe=Recipe.of_plan(source.provenance),
        allow_float=allow_float,
        seed=source.seed,
        tuned=False,
    )
    return session.materialized(complete_assignment(session.network, source.assignment))

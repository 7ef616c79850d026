"""mpq_compile: mixed-precision quantization that meets a measured budget.

    import mpq_compile as mpq
    net = mpq.compile(model, example_inputs, calibration, budget=mpq.Budget(latency_ms=2.0))

Names are imported when first used: loading an artifact needs neither torch nor a compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "Budget": "mpq_compile.types",
    "Candidate": "mpq_compile.types",
    "ImageFolder": "mpq_compile.data.images",
    "Plan": "mpq_compile.types",
    "Site": "mpq_compile.types",
    "Verification": "mpq_compile.types",
    "Workload": "mpq_compile.cost.accelerator_workload",
    "plan": "mpq_compile.pipeline",
    "compile": "mpq_compile.pipeline",
    "assign": "mpq_compile.pipeline",
    "finetune": "mpq_compile.finetuning",
    "frontier": "mpq_compile.tradeoff",
    "search_policy": "mpq_compile.searching",
    "Policy": "mpq_compile.search.policy",
    "FrontierReport": "mpq_compile.report.frontier",
    "profile": "mpq_compile.profiling",
    "Profiled": "mpq_compile.profiling",
    "stability": "mpq_compile.sufficiency",
    "Stability": "mpq_compile.sufficiency",
    "check": "mpq_compile.solve.certificate",
    "load": "mpq_compile.runtime.network",
    "CompiledNetwork": "mpq_compile.runtime.network",
    "MpqError": "mpq_compile.errors",
    "CaptureError": "mpq_compile.errors",
    "UnsupportedOpError": "mpq_compile.errors",
    "CalibrationError": "mpq_compile.errors",
    "ProfileError": "mpq_compile.errors",
    "PlanError": "mpq_compile.errors",
    "InfeasibleBudgetError": "mpq_compile.errors",
    "LoweringError": "mpq_compile.errors",
    "ArtifactError": "mpq_compile.errors",
    "DeviceError": "mpq_compile.errors",
    "errors": "mpq_compile.errors",
    "export_encodings": "mpq_compile.integrations.encodings.collect",
    "export_onnx": "mpq_compile.integrations.onnx_export",
    "from_encodings": "mpq_compile.integrations.encodings.rebuild",
}
__all__ = ["__version__", *_NAMES]

if TYPE_CHECKING:
    from mpq_compile.cost.accelerator_workload import Workload  # noqa: F401
    from mpq_compile.data.images import ImageFolder  # noqa: F401
    from mpq_compile.errors import (  # noqa: F401
        ArtifactError,
        CalibrationError,
        CaptureError,
        DeviceError,
        InfeasibleBudgetError,
        LoweringError,
        MpqError,
        PlanError,
        ProfileError,
        UnsupportedOpError,
    )
    from mpq_compile.finetuning import finetune  # noqa: F401
    from mpq_compile.integrations.encodings.collect import export_encodings  # noqa: F401
    from mpq_compile.integrations.encodings.rebuild import from_encodings  # noqa: F401
    from mpq_compile.integrations.onnx_export import export_onnx  # noqa: F401
    from mpq_compile.pipeline import assign, compile, plan  # noqa: A004, F401
    from mpq_compile.profiling import Profiled, profile  # noqa: F401
    from mpq_compile.report.frontier import FrontierReport  # noqa: F401
    from mpq_compile.runtime.network import CompiledNetwork, load  # noqa: F401
    from mpq_compile.search.policy import Policy  # noqa: F401
    from mpq_compile.searching import search_policy  # noqa: F401
    from mpq_compile.solve.certificate import check  # noqa: F401
    from mpq_compile.sufficiency import Stability, stability  # noqa: F401
    from mpq_compile.tradeoff import frontier  # noqa: F401
    from mpq_compile.types import Budget, Candidate, Plan, Site, Verification  # noqa: F401


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_NAMES[name])
    return module if name == "errors" else getattr(module, name)

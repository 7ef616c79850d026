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
    "calibrating": "mpq_compile.integrations.calibration_context",
    "explain": "mpq_compile.integrations.explanation",
    "finetune": "mpq_compile.finetuning",
    "frontier": "mpq_compile.tradeoff",
    "search_policy": "mpq_compile.searching",
    "Policy": "mpq_compile.search.policy",
    "FrontierReport": "mpq_compile.report.frontier",
    "write_report": "mpq_compile.report.page",
    "profile": "mpq_compile.profiling",
    "Profiled": "mpq_compile.profiling",
    "stability": "mpq_compile.sufficiency",
    "Stability": "mpq_compile.sufficiency",
    "distributed": "mpq_compile.integrations.torch_distributed",
    "check": "mpq_compile.solve.certificate",
    "check_plan": "mpq_compile.solve.plan_proof",
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

if TYPE_CHECKING:  # one line a name; `as` says that it is public
    from mpq_compile import errors as errors
    from mpq_compile.cost.accelerator_workload import Workload as Workload
    from mpq_compile.data.images import ImageFolder as ImageFolder
    from mpq_compile.errors import ArtifactError as ArtifactError
    from mpq_compile.errors import CalibrationError as CalibrationError
    from mpq_compile.errors import CaptureError as CaptureError
    from mpq_compile.errors import DeviceError as DeviceError
    from mpq_compile.errors import InfeasibleBudgetError as InfeasibleBudgetError
    from mpq_compile.errors import LoweringError as LoweringError
    from mpq_compile.errors import MpqError as MpqError
    from mpq_compile.errors import PlanError as PlanError
    from mpq_compile.errors import ProfileError as ProfileError
    from mpq_compile.errors import UnsupportedOpError as UnsupportedOpError
    from mpq_compile.finetuning import finetune as finetune
    from mpq_compile.integrations.calibration_context import calibrating as calibrating
    from mpq_compile.integrations.encodings.collect import export_encodings as export_encodings
    from mpq_compile.integrations.encodings.rebuild import from_encodings as from_encodings
    from mpq_compile.integrations.explanation import explain as explain
    from mpq_compile.integrations.onnx_export import export_onnx as export_onnx
    from mpq_compile.integrations.torch_distributed import distributed as distributed
    from mpq_compile.pipeline import assign as assign
    from mpq_compile.pipeline import compile as compile
    from mpq_compile.pipeline import plan as plan
    from mpq_compile.profiling import Profiled as Profiled
    from mpq_compile.profiling import profile as profile
    from mpq_compile.report.frontier import FrontierReport as FrontierReport
    from mpq_compile.report.page import write_report as write_report
    from mpq_compile.runtime.network import CompiledNetwork as CompiledNetwork
    from mpq_compile.runtime.network import load as load
    from mpq_compile.search.policy import Policy as Policy
    from mpq_compile.searching import search_policy as search_policy
    from mpq_compile.solve.certificate import check as check
    from mpq_compile.solve.plan_proof import check_plan as check_plan
    from mpq_compile.sufficiency import Stability as Stability
    from mpq_compile.sufficiency import stability as stability
    from mpq_compile.tradeoff import frontier as frontier
    from mpq_compile.types import Budget as Budget
    from mpq_compile.types import Candidate as Candidate
    from mpq_compile.types import Plan as Plan
    from mpq_compile.types import Site as Site
    from mpq_compile.types import Verification as Verification
else:

    def __getattr__(name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_NAMES[name])
        return module if name == "errors" else getattr(module, name)

"""Saved models as functions from a NumPy array to a NumPy array. Imports no torch.

Each function imports its own runtime: a process that runs one of them loads no other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]
_OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16"}


def load_artifact(folder: Path, threads: int) -> Run:
    """Load an artifact of ours; its thread count stands in its manifest."""
    from mpq_compile.runtime.network import load

    return load(folder)


def load_onnx(model: Path | bytes, threads: int) -> Run:
    """Load an ONNX model, from a file or serialized, into ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def load_openvino(model: Path, threads: int, precision: str = "fp32") -> Run:
    """Compile a model for latency on OpenVINO's CPU plugin, with a hint of the float precision."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _OPENVINO_HINTS[precision],
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda x: request.infer({0: x}, share_inputs=True, share_outputs=True)[0]

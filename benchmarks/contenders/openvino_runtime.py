"""OpenVINO's CPU plugin: fp32, bf16, and int8 through NNCF (float parts in fp32 or bf16)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
from torch import Tensor

from contenders.onnx_export import exported
from contenders.task import NetTask, Prepared


def prepare(task: NetTask, precision: str, quantized: bool) -> Prepared:
    """Compile the exported or the quantized model for latency, with a precision hint."""
    model = quantized_model(task) if quantized else exported(task)
    return task.prepared(compiled(model, task.threads, precision))


def compiled(model: Path, threads: int, precision: str) -> Callable[[Tensor], np.ndarray]:
    """Return a function from input to output of a model."""
    hints = {"fp32": "f32", "bf16": "bf16"}
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hints[precision],
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()
    return lambda x: request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)[0]


def quantized_model(task: NetTask) -> Path:
    """Return the path of the int8 model, quantized by NNCF for performance."""
    path = task.folder / f"{task.network}.int8.xml"
    if path.is_file():
        return path
    import nncf

    model = nncf.quantize(
        openvino.Core().read_model(exported(task)),
        nncf.Dataset([x.numpy() for x in task.calibration]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER if task.net.transformer else None,
    )
    openvino.save_model(model, path, compress_to_fp16=False)
    return path

"""OpenVINO's CPU plugin: fp32, bf16, and int8 through NNCF (float parts in fp32 or bf16)."""

from __future__ import annotations

from pathlib import Path

import openvino

from contenders.onnx_export import exported
from contenders.saved_models import load_openvino
from contenders.task import NetTask, Prepared


def prepare(task: NetTask, precision: str, quantized: bool) -> Prepared:
    """Compile the exported or the quantized model for latency, with a precision hint."""
    model = quantized_model(task) if quantized else exported(task)
    return task.prepared_numpy(load_openvino(model, task.threads, precision))


def quantized_model(task: NetTask) -> Path:
    """Return the path of the int8 model, quantized by NNCF for performance."""
    path = task.folder / f"{task.net.name}.int8.xml"
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

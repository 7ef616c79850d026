"""ONNX Runtime's CPU provider: fp32, static int8 in QDQ form, and int8 with dynamic activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)

from contenders.onnx_export import exported
from contenders.saved_models import load_onnx
from contenders.task import NetTask, Prepared
from mpq_compile.kernels.tier import host_flags


def fp32(task: NetTask) -> Prepared:
    """The exported model."""
    return task.prepared_numpy(load_onnx(exported(task), task.threads))


def int8(task: NetTask) -> Prepared:
    """The quantized model."""
    return task.prepared_numpy(load_onnx(quantized(task), task.threads))


def int8_dynamic(task: NetTask) -> Prepared:
    """The model with s8 weights per channel, activations quantized at run time."""
    path, source = task.folder / f"{task.net.name}.dynamic.onnx", task.folder / "dynamic.pre.onnx"
    _optimize(exported(task), source)
    narrow = "avx512_vnni" not in host_flags()
    quantize_dynamic(
        str(source), str(path), per_channel=True, weight_type=QuantType.QInt8, reduce_range=narrow
    )
    return task.prepared_numpy(load_onnx(path, task.threads))


def quantized(task: NetTask) -> Path:
    """Return the path of the int8 model: u8 activations, s8 weights per channel."""
    path = task.folder / f"{task.net.name}.int8.onnx"
    if path.is_file():
        return path
    source = task.folder / f"{task.net.name}.pre.onnx"
    _optimize(exported(task), source)
    name = onnxruntime.InferenceSession(str(source)).get_inputs()[0].name
    quantize_static(
        str(source),
        str(path),
        _Reader([{name: x.numpy()} for x in task.calibration]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Without VNNI its kernels saturate at 16 bits, and 7 bits of weights avoid that.
        reduce_range="avx512_vnni" not in host_flags(),
    )
    return path


def _optimize(model: Path, optimized: Path) -> None:
    """Prepare a model for quantization, as its documentation advises."""
    try:
        quant_pre_process(str(model), str(optimized))
    except TypeError:
        # Its symbolic inference fails at masks that are computed from ids; all sizes are fixed,
        # so that ONNX's own inference finds the shapes.
        quant_pre_process(str(model), str(optimized), skip_symbolic_shape=True)


class _Reader(CalibrationDataReader):
    """Hands out calibration inputs one by one."""

    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)

"""Types of tensors: what ONNX calls them, and operands of one type."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

from mpq_compile.integrations.qdq.values import Value
from mpq_compile.integrations.qdq.writer import Writer


def onnx_type(dtype: torch.dtype) -> int:
    """Return ONNX's number of a type; bf16 is float32 that is rounded where it is stored."""
    if dtype == torch.bfloat16:
        return int(TensorProto.FLOAT)
    return int(helper.np_dtype_to_tensor_dtype(_numpy(dtype)))


def as_type(writer: Writer, value: Value | float, dtype: torch.dtype) -> str:
    """Return the name of a tensor or of a number as ``dtype``; a Cast where it is of another."""
    if not isinstance(value, Value):
        return writer.constant(np.asarray(value, _numpy(dtype)))
    if value.dtype == dtype:
        return value.name
    return writer.op("Cast", value.name, into=f"{value.name}_as", to=onnx_type(dtype))


def common_type(*values: Any) -> torch.dtype:
    """Return the type in which PyTorch compares two tensors, or a tensor and a number."""
    a, b = (
        torch.empty((1,) * value.rank, dtype=value.dtype) if isinstance(value, Value) else value
        for value in values
    )
    return torch.result_type(a, b)


def _numpy(dtype: torch.dtype) -> Any:
    return torch.empty(0, dtype=dtype).numpy().dtype

"""QuantizeLinear and DequantizeLinear: per tensor, per axis and by blocks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from onnx import TensorProto
from torch import Tensor

from mpq_compile.onnx_import.operator import Operator
from mpq_compile.onnx_import.program import DTYPES, Node, QuantizedConstant

# Smallest and largest code by ONNX element type.
RANGES: Mapping[int, tuple[int, int]] = {
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
}


def quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """``saturate(round_half_to_even(x / scale) + zero)``."""
    element = node.get("output_dtype", TensorProto.UINT8)
    if element not in RANGES:
        raise node.unsupported(f"codes of type {element}", "quantize to integers of 2 to 16 bits")
    low, high = RANGES[element]
    steps = torch.round(x / like(node, scale, x))
    if zero is not None:
        steps = steps + like(node, zero, x).to(steps.dtype)
    return torch.clamp(steps, low, high).to(DTYPES[element])


def dequantize(node: Node, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """``(codes − zero) · scale``."""
    steps = codes.to(torch.int32)
    if zero is not None:
        steps = steps - like(node, zero, codes).to(torch.int32)
    element = node.get("output_dtype", 0)
    real = steps.to(scale.dtype) * like(node, scale, codes)
    return real.to(DTYPES[element]) if element else real


def like(node: Node, value: Tensor, x: Tensor) -> Tensor:
    """Return scales or zero points in a shape that broadcasts over ``x``."""
    if value.numel() == 1 and value.dim() <= 1:
        return value.reshape(())
    axis, block = node.get("axis", 1) % x.dim(), node.get("block_size", 0)
    if block:
        repeated = value.repeat_interleave(block, axis)
        return repeated.narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return value.reshape(shape)


def codes_of(
    node: Node, element: int, codes: Tensor, scale: Tensor, zero: Tensor | None = None
) -> QuantizedConstant | None:
    """Return what a DequantizeLinear reads, where its codes are integers of 2 to 16 bits."""
    if element not in RANGES:
        return None
    low, high = RANGES[element]
    centre = torch.zeros((), dtype=codes.dtype) if zero is None else like(node, zero, codes)
    return QuantizedConstant(
        codes=codes,
        scale=like(node, scale, codes).expand(codes.shape),
        zero_point=centre.expand(codes.shape),
        bits=(high - low).bit_length(),
        signed=low < 0,
    )


QUANTIZERS = {
    "QuantizeLinear": Operator(function=quantize),
    "DequantizeLinear": Operator(function=dequantize),
}

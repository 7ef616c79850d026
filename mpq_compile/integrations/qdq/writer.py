"""Writes nodes and initializers of one ONNX graph; knows how codes and scales are stored."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mpq_compile.quant.packing import pack_bits
from mpq_compile.types import QParams

# The first operator set with types of four bits and scales of blocks. INT2, of set 25, is not
# written: ONNX Runtime 1.32 reads it, but fuses it into a QLinearConv that does not.
OPSET = 21
# The end of an axis, of any size.
END = int(np.iinfo(np.int64).max)
_SIGNED = {4: TensorProto.INT4, 8: TensorProto.INT8}


class Writer:
    """One graph as it grows; tensors are known by their names.

    Attributes:
        codes: Of each tensor that was dequantized, by its name.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.codes: dict[str, str] = {}
        self._stored: dict[tuple[Any, ...], str] = {}
        self._taken: set[str] = set()

    def name(self, stem: str) -> str:
        """Return ``stem``, or ``stem_2`` and so on where it is taken."""
        found, count = stem, 1
        while found in self._taken:
            count += 1
            found = f"{stem}_{count}"
        self._taken.add(found)
        return found

    def op(self, kind: str, *inputs: str, into: str, **attributes: Any) -> str:
        """Write a node with one result, named ``into`` where that is free; return its name."""
        return self.ops(kind, *inputs, into=[into], **attributes)[0]

    def ops(self, kind: str, *inputs: str, into: Sequence[str], **attributes: Any) -> list[str]:
        """Write a node with several results; return their names."""
        outputs = [self.name(stem) for stem in into]
        node = helper.make_node(kind, list(inputs), outputs, name=outputs[0], **attributes)
        self.nodes.append(node)
        return outputs

    def sliced(self, x: str, axis: int, start: int, end: int, step: int = 1, *, into: str) -> str:
        """Write a Slice along one axis; :data:`END` is its end."""
        bounds = [self.sizes(number) for number in (start, end, axis, step)]
        return self.op("Slice", x, *bounds, into=into)

    # Constants

    def constant(self, array: Any, stem: str = "constant") -> str:
        """Store an array, equal ones once; return its name."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return self._store(kind, array.shape, array.tobytes(), stem)

    def scalar(self, value: float) -> str:
        """Store a float32 number."""
        return self.constant(np.float32(value))

    def sizes(self, *values: int) -> str:
        """Store int64 sizes or axes, [n]."""
        return self.constant(np.array(values, np.int64), "sizes")

    def bf16(self, bits: np.ndarray, stem: str) -> str:
        """Store bf16 numbers, given as uint16; return the float32 tensor that they are."""
        stored = self._store(TensorProto.BFLOAT16, bits.shape, bits.tobytes(), f"{stem}_bf16")
        return self.op("Cast", stored, into=stem, to=TensorProto.FLOAT)

    def packed(self, codes: np.ndarray, bits: int, stem: str) -> str:
        """Store signed codes in the narrowest type that holds ``bits``; INT4 has two a byte."""
        width = min(width for width in _SIGNED if width >= bits)
        raw = pack_bits(codes, width).tobytes()
        return self._store(_SIGNED[width], codes.shape, raw, stem)

    def _store(self, kind: int, shape: tuple[int, ...], raw: bytes, stem: str) -> str:
        key = (kind, shape, raw)
        if key not in self._stored:
            name = self.name(stem)
            self.initializers.append(
                TensorProto(name=name, data_type=kind, dims=shape, raw_data=raw)
            )
            self._stored[key] = name
        return self._stored[key]

    # Numbers between formats

    def clip(self, x: str, lo: float, hi: float, *, into: str) -> str:
        """Write a clamp to [lo, hi]; nothing where both are infinite."""
        if (lo, hi) == (-inf, inf):
            return x
        if (lo, hi) == (0.0, inf):
            return self.op("Relu", x, into=f"{into}_relu")
        bounds = ["" if abs(bound) == inf else self.scalar(bound) for bound in (lo, hi)]
        return self.op("Clip", x, *bounds, into=f"{into}_clip")

    def quantized(self, x: str, qparams: QParams, into: str) -> str:
        """Write QuantizeLinear and DequantizeLinear of one tensor; return what the latter gives.

        Codes are UINT8; below eight bits a Clip keeps them in their range. (What ONNX Runtime 1.32
        makes of UINT4 tensors fails where they are pooled or clipped.)
        """
        top, zero = qparams.spec.qmax, qparams.zero_point
        if qparams.spec.bits < 8:
            x = self.clip(x, -zero * qparams.scale, (top - zero) * qparams.scale, into=into)
        scale, point = self.scalar(qparams.scale), self.constant(np.uint8(zero), "zero_point")
        codes = self.op("QuantizeLinear", x, scale, point, into=f"{into}_codes")
        return self.dequantized(codes, qparams, into)

    def dequantized(self, codes: str, qparams: QParams, into: str) -> str:
        """Write DequantizeLinear; return its result, of which :attr:`codes` knows what it was."""
        scale = self.scalar(qparams.scale)
        point = self.constant(np.uint8(qparams.zero_point), "zero_point")
        real = self.op("DequantizeLinear", codes, scale, point, into=f"{into}_real")
        self.codes[real] = codes
        return real

    def rounded_to_bf16(self, x: str, into: str) -> str:
        """Write a rounding to bf16 and back."""
        half = self.op("Cast", x, into=f"{into}_bf16", to=TensorProto.BFLOAT16)
        return self.op("Cast", half, into=f"{into}_real", to=TensorProto.FLOAT)

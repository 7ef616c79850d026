"""The epilogue of a matrix multiply: scale, bias, residual, clamp, store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import (
    bits_to_float,
    copy_short,
    fenced_product,
    load,
    narrow,
    scalar,
    splat,
    store,
    vector,
    widen,
)
from mpq_compile.kernels.packing import SCALAR_WORDS
from mpq_compile.kernels.workload import Format


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """Reads one record ``E`` (``packing.pack_epilogue``) and writes the output.

    Args:
        record, row_scales, residual, output: Buffers; those that a workload lacks are None.
        residual_format, out_format: Formats of those two.
        columns: Channels to which the record's columns are padded.
        lanes: Channels handled at once.
        width: Channels stored of each vector: ``lanes``, or fewer in a group narrower than one.
        scale_groups: Rows of compensation and of scales in the record.
    """

    record: Any
    row_scales: Any
    residual: Any
    output: Any
    residual_format: Format | None
    out_format: Format
    columns: int
    lanes: int
    width: int
    scale_groups: int = 1

    def compensation(self, channel: Any, group: Any = 0) -> Any:
        """Load the int32 start of the accumulators of ``lanes`` channels."""
        return load(self.record, self.compensation_offset(channel, group), self.lanes)

    def compensation_offset(self, channel: Any, group: Any = 0) -> Any:
        """Return where in the record the compensation of a channel stands."""
        return self._at(group, channel)

    def scale(self, channel: Any, group: Any = 0) -> Any:
        """Load the float32 scales S."""
        return self._floats(self.scale_groups + group, channel)

    def bias(self, channel: Any) -> Any:
        """Load the float32 biases B."""
        return self._floats(2 * self.scale_groups, channel)

    def scaled(self, acc: Any, channel: Any, group: Any = 0) -> Any:
        """Return f32(acc) ⊗ S of int32 or float32 accumulators."""
        acc = T.cast(acc, vector("float32", self.lanes))
        return fenced_product(acc, self.scale(channel, group), self.lanes)

    def first(self, channel: Any) -> Any:
        """Return what the float32 sum over weight groups starts from: B, or 0 before row scales."""
        if self.row_scales is None:
            return self.bias(channel)
        return splat(T.float32(0), self.lanes)

    def total(self, value: Any, channel: Any, row: Any) -> Any:
        """Return v of accumulators, or of float32 sums over weight groups, residual left out.

        ``row`` is the output pixel, which has a scale of its own where inputs are dynamic.
        """
        grouped = self.scale_groups > 1
        if grouped and self.row_scales is None:
            return value
        if not grouped:
            value = self.scaled(value, channel)
        if self.row_scales is not None:
            value = fenced_product(value, splat(self.row_scales[row], self.lanes), self.lanes)
        return value + self.bias(channel)

    def finish(self, v: Any, offset: Any) -> None:
        """Add the residual to float32 ``v``, clamp and store it at element ``offset``."""
        if self.residual_format:
            v = v + self._residual(offset)
        bounds = scalar(self.record, "lo"), scalar(self.record, "hi")
        value = narrow(v, self.out_format, *bounds, scalar(self.record, "zp_out"), self.lanes)
        if self.width == self.lanes:
            store(self.output, offset, self.lanes, value)
            return
        whole = T.alloc_buffer((self.lanes,), self.output.dtype)
        store(whole, 0, self.lanes, value)
        copy_short(self.output, offset, whole, 0, self.width)

    def _residual(self, offset: Any) -> Any:
        source = self.residual
        if self.width != self.lanes:
            source = T.alloc_buffer((self.lanes,), self.residual.dtype)
            copy_short(source, 0, self.residual, offset, self.width)
            offset = 0
        stored = load(source, offset, self.lanes)
        zero_point = scalar(self.record, "zp_residual")
        value = widen(stored, str(self.residual_format), zero_point, self.lanes)
        factor = splat(scalar(self.record, "residual_scale"), self.lanes)
        return fenced_product(value, factor, self.lanes)

    def _floats(self, row: Any, channel: Any) -> Any:
        return bits_to_float(load(self.record, self._at(row, channel), self.lanes), self.lanes)

    def _at(self, row: Any, channel: Any) -> Any:
        return SCALAR_WORDS + row * self.columns + channel

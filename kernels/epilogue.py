"""The epilogue of a matrix multiply: scale, bias, residual, clamp, store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.border import Border, border_value
from mpq_compile.kernels.emit import (
    FORMAT_BYTES,
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

# On AVX-512 BF16 the conversion is one instruction; TVM would legalize its own to six.
BF16_OF_F32 = "mpq_bf16_of_f32"
BF16_OF_F32_IR = """
define linkonce_odr <16 x i16> @mpq_bf16_of_f32(<16 x float> %v) alwaysinline {
  %short = fptrunc <16 x float> %v to <16 x bfloat>
  %bits = bitcast <16 x bfloat> %short to <16 x i16>
  ret <16 x i16> %bits
}
"""


@dataclass(frozen=True, kw_only=True)
class Epilogue:
    """Reads one record ``E`` (``packing.pack_epilogue``) and writes the output.

    Args:
        record, row_scales, residual, output: Buffers; those that a workload lacks are None.
        residual_format, out_format: Formats of those two.
        columns: Channels to which the record's columns are padded.
        lanes: Channels handled at once.
        width: Channels stored of each vector: ``lanes``, or fewer in a group narrower than one.
        scale_groups: Weight groups with scales of their own.
        compensation_rows: Rows of compensation in the record.
        border: What surrounds the output, or None.
        bf16_rounding: Function that rounds a vector of float32 to bf16 in one instruction, or "".
        bound: Scalars of the record that :meth:`hoisted` has read into variables.
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
    compensation_rows: int = 1
    border: Border | None = None
    bf16_rounding: str = ""
    bound: Mapping[str, Any] = field(default_factory=dict)

    @property
    def llvm_ir(self) -> str:
        """Functions that the epilogue calls."""
        return BF16_OF_F32_IR if self.bf16_rounding else ""

    def hoisted(self) -> Epilogue:
        """Read the record's scalars here and now, for a loop that uses the result.

        LLVM does not do it: it cannot tell that the stores of the loop leave the record alone.
        """
        names = ["lo", "hi", "zp_out"]
        if self.residual_format:
            names += ["zp_residual", "residual_scale"]
        return replace(self, bound={name: T.bind(self._scalar(name)) for name in names})

    def factors(self, channels: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Read what :meth:`total` needs of each vector of channels into variables: (S, B).

        Sums over weight groups are scaled already (no S), and began with B unless rows have
        scales of their own.
        """
        grouped = self.scale_groups > 1
        began = grouped and self.row_scales is None
        return [
            (None if grouped else T.bind(self.scale(c)), None if began else T.bind(self.bias(c)))
            for c in channels
        ]

    def compensation(self, channel: Any, group: Any = 0) -> Any:
        """Load the int32 start of the accumulators of ``lanes`` channels."""
        return load(self.record, self.compensation_offset(channel, group), self.lanes)

    def compensation_offset(self, channel: Any, group: Any = 0) -> Any:
        """Return where in the record the compensation of a channel stands."""
        return self._at(1 + group, channel)

    def scale(self, channel: Any, group: Any = 0) -> Any:
        """Load the float32 scales S."""
        return self._floats(1 + self.compensation_rows + group, channel)

    def bias(self, channel: Any) -> Any:
        """Load the float32 biases B."""
        return self._floats(0, channel)

    def group_scale(self, word: Any) -> Any:
        """Load the float32 scales S at a word of those that the few-row kernel reads in order."""
        return self._floats(1 + self.compensation_rows, word)

    def scaled(self, acc: Any, scale: Any) -> Any:
        """Return f32(acc) ⊗ S of int32 or float32 accumulators."""
        return fenced_product(T.cast(acc, vector("float32", self.lanes)), scale, self.lanes)

    def first(self, channel: Any) -> Any:
        """Return what the float32 sum over weight groups starts from: B, or 0 before row scales."""
        if self.row_scales is None:
            return self.bias(channel)
        return splat(T.float32(0), self.lanes)

    def total(self, value: Any, factors: tuple[Any, Any], row: Any) -> Any:
        """Return v of accumulators or of sums over weight groups, the residual left out.

        ``row`` is the output pixel, which has a scale of its own where inputs are dynamic.
        """
        scale, bias = factors
        if scale is not None:
            value = self.scaled(value, scale)
        if self.row_scales is not None:
            value = fenced_product(value, splat(self.row_scales[row], self.lanes), self.lanes)
        return value if bias is None else value + bias

    def place(self, pixel: Any) -> Any:
        """Return where an output pixel is stored, counted in pixels."""
        return pixel if self.border is None else self.border.place(pixel)

    def surround(self, task: Any, tasks: int) -> None:
        """Store the border of one task's share of the rows."""
        if self.border is None:
            return
        lanes = 4 * self.lanes // FORMAT_BYTES[self.out_format]
        value = border_value(self.record, self.output)
        self.border.fill(self.output, value, task, tasks, lanes)

    def finish(self, v: Any, offset: Any, residual: Any = None) -> None:
        """Add the residual to float32 ``v``, clamp and store it at element ``offset``.

        ``residual`` is the residual's element; by default the same.
        """
        if self.residual_format:
            v = v + self._residual(offset if residual is None else residual)
        value = self._stored(v)
        if self.width == self.lanes:
            store(self.output, offset, self.lanes, value)
            return
        whole = T.alloc_buffer((self.lanes,), self.output.dtype)
        store(whole, 0, self.lanes, value)
        copy_short(self.output, offset, whole, 0, self.width)

    def _stored(self, v: Any) -> Any:
        lo, hi, zp_out = (self._scalar(name) for name in ("lo", "hi", "zp_out"))
        if not self.bf16_rounding:
            return narrow(v, self.out_format, lo, hi, zp_out, self.lanes)
        clamped = narrow(v, "fp32", lo, hi, zp_out, self.lanes)
        return T.call_pure_extern(vector("uint16", self.lanes), self.bf16_rounding, clamped)

    def _residual(self, offset: Any) -> Any:
        source = self.residual
        if self.width != self.lanes:
            source = T.alloc_buffer((self.lanes,), self.residual.dtype)
            copy_short(source, 0, self.residual, offset, self.width)
            offset = 0
        stored = load(source, offset, self.lanes)
        zero_point = self._scalar("zp_residual")
        value = widen(stored, str(self.residual_format), zero_point, self.lanes)
        factor = splat(self._scalar("residual_scale"), self.lanes)
        return fenced_product(value, factor, self.lanes)

    def _scalar(self, name: str) -> Any:
        return self.bound[name] if name in self.bound else scalar(self.record, name)

    def _floats(self, row: Any, channel: Any) -> Any:
        return bits_to_float(load(self.record, self._at(row, channel), self.lanes), self.lanes)

    def _at(self, row: Any, channel: Any) -> Any:
        return SCALAR_WORDS + row * self.columns + channel

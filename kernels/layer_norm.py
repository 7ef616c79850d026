"""Layer and RMS norm of rows: one read from memory, several stored formats at once.

A row stays in the first-level cache over three passes: mean, variance, result. Results agree with
PyTorch's float32 to rounding; conversions of the result are those of ``quant.reference.convert``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.elementwise_workload import NormWorkload
from mpq_compile.kernels.emit import (
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    converted,
    copy_short,
    load,
    shared_spans,
    splat,
    store,
    widen,
)
from mpq_compile.kernels.packing import SCALAR_WORDS, SCALARS
from mpq_compile.kernels.softmax import reduce_lanes
from mpq_compile.kernels.tier import Tier

# Sums in flight that hide the latency of an addition.
_WAYS = 4


def generate(workload: NormWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return ``main(X, E, [G], [B], O0, …)``, all flat.

    E holds one int32[16] record for the input and one for each output (``packing.pack_convert``);
    G and B are float32 factors and offsets of the columns.
    """
    rows, columns = workload.rows, workload.columns
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        x = T.arg("X", T.buffer((rows * columns,), FORMAT_DTYPE[workload.source]))
        records = 1 + len(workload.outputs)
        record = T.arg("E", T.buffer((records * SCALAR_WORDS,), "int32"))
        factors = T.arg("G", T.buffer((columns,), "float32")) if workload.scaled else None
        offsets = T.arg("B", T.buffer((columns,), "float32")) if workload.shifted else None
        outputs = [
            T.arg(f"O{index}", T.buffer((rows * columns,), FORMAT_DTYPE[fmt]))
            for index, fmt in enumerate(workload.outputs)
        ]
        shares = threads if rows * columns >= PARALLEL_ELEMENTS else 1

        def span(start: Any, count: Any) -> None:
            norm = _Norm(
                workload=workload,
                lanes=tier.lanes,
                x=x,
                record=record,
                outputs=outputs,
                factors=factors,
                offsets=offsets,
                tails=[_tail_of(buffer, columns, tier.lanes) for buffer in (factors, offsets)],
                tail=T.alloc_buffer((tier.lanes,), x.dtype),
            )
            with T.serial(count) as index:
                norm.row(T.bind((start + index) * columns))

        shared_spans(rows, shares, span)
    return builder.get()


def _tail_of(buffer: Any, columns: int, lanes: int) -> Any:
    """Return the last columns in a vector of their own; None where all vectors are whole."""
    rest = columns % lanes
    if buffer is None or rest == 0:
        return None
    tail = T.alloc_buffer((lanes,), "float32")
    copy_short(tail, 0, buffer, columns - rest, rest)
    return tail


@dataclass(frozen=True, kw_only=True)
class _Norm:
    """One task; ``tails`` and ``tail`` hold what does not fill a vector, of columns and of x."""

    workload: NormWorkload
    lanes: int
    x: Any
    record: Any
    outputs: Sequence[Any]
    factors: Any
    offsets: Any
    tails: Sequence[Any]
    tail: Any

    def row(self, start: Any) -> None:
        """Emit the row that starts at element ``start``."""
        columns, lanes = self.workload.columns, self.lanes
        rest = columns % lanes
        if rest:
            store(self.tail, 0, lanes, splat(T.cast(0, self.x.dtype), lanes))
            copy_short(self.tail, 0, self.x, start + (columns - rest), rest)
        mean = splat(T.float32(0), lanes)
        if self.workload.centred:
            mean = self._mean(lambda at, tail: self._values(start, at, tail))
        variance = self._mean(lambda at, tail: self._squares(start, at, tail, mean))
        shifted = variance + splat(T.float32(self.workload.epsilon), lanes)
        inverse = T.bind(splat(T.float32(1), lanes) / T.sqrt(shifted))

        def finish(at: Any, _: int, tail: bool) -> None:
            v = (self._values(start, at, tail) - mean) * inverse
            for buffer, end, product in (
                (self.factors, self.tails[0], True),
                (self.offsets, self.tails[1], False),
            ):
                if buffer is not None:
                    column = load(end, 0, lanes) if tail else load(buffer, at, lanes)
                    v = v * column if product else v + column
            self._store(T.bind(v), start + at, rest if tail else 0)

        self._each(finish)

    def _each(self, body: Callable[[Any, int, bool], None]) -> None:
        """Emit ``body(column, way, is tail)`` for all vectors of a row."""
        whole, rest = divmod(self.workload.columns, self.lanes)
        groups, odd = divmod(whole, _WAYS)
        if groups:
            with T.serial(groups) as group:
                for way in range(_WAYS):
                    body((group * _WAYS + way) * self.lanes, way, False)
        for way in range(odd):
            body((groups * _WAYS + way) * self.lanes, way, False)
        if rest:
            body(whole * self.lanes, odd, True)

    def _mean(self, values: Callable[[Any, bool], Any]) -> Any:
        """Return the mean of a row of values, in every lane."""
        lanes = self.lanes
        sums = [T.alloc_buffer((lanes,), "float32") for _ in range(_WAYS)]
        for total in sums:
            store(total, 0, lanes, splat(T.float32(0), lanes))

        def add(at: Any, way: int, tail: bool) -> None:
            store(sums[way], 0, lanes, load(sums[way], 0, lanes) + values(at, tail))

        self._each(add)
        first, second, third, fourth = (load(total, 0, lanes) for total in sums)
        total = (first + second) + (third + fourth)
        whole = reduce_lanes(total, lambda a, b: a + b, lanes)
        return T.bind(whole * splat(T.float32(1 / self.workload.columns), lanes))

    def _values(self, start: Any, at: Any, tail: bool) -> Any:
        """Load a vector of x as float32; zeros beyond the last column."""
        lanes, source = self.lanes, self.workload.source
        stored = load(self.tail, 0, lanes) if tail else load(self.x, start + at, lanes)
        if source == "fp32":
            return stored
        value = widen(stored, source, self._word(0, "zp_in"), lanes)
        if source == "u8":
            value = value * splat(self._word(0, "scale"), lanes)
        return self._inside(value, tail)

    def _squares(self, start: Any, at: Any, tail: bool, mean: Any) -> Any:
        difference = T.bind(self._inside(self._values(start, at, tail) - mean, tail))
        return difference * difference

    def _inside(self, value: Any, tail: bool) -> Any:
        """Replace what is beyond the last column by zeros."""
        if not tail:
            return value
        rest = self.workload.columns % self.lanes
        inside = T.ramp(0, 1, self.lanes) < splat(T.int32(rest), self.lanes)
        return T.Select(inside, value, splat(T.float32(0), self.lanes))

    def _store(self, v: Any, place: Any, rest: int) -> None:
        """Store float32 ``v`` in every format; ``rest`` columns of it, or all where 0."""
        lanes = self.lanes
        for index, fmt in enumerate(self.workload.outputs):
            stored = converted(v, fmt, self.record, index + 1, lanes)
            if not rest:
                store(self.outputs[index], place, lanes, stored)
                continue
            whole = T.alloc_buffer((lanes,), self.outputs[index].dtype)
            store(whole, 0, lanes, stored)
            copy_short(self.outputs[index], place, whole, 0, rest)

    def _word(self, record: int, name: str) -> Any:
        index = SCALARS.index(name)
        word = self.record[record * SCALAR_WORDS + index]
        return word if index < 3 else T.reinterpret("float32", word)

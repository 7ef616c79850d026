"""Float attention of a few query rows, as a decode step has it: keys and values are read once.

Nothing is packed: a score is a dot product along a key's own row, and an output row the sum of
weighted value rows. What the mask hides from all rows is not read, so that a step costs what its
position in the cache costs. Results agree with PyTorch's float32 to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.attention_workload import AttentionWorkload, Layout
from mpq_compile.kernels.emit import (
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    bound_scalar,
    load,
    narrow,
    permute,
    shared_range,
    splat,
    store,
)
from mpq_compile.kernels.geometry import vector_starts
from mpq_compile.kernels.packing import SCALAR_WORDS
from mpq_compile.kernels.softmax import fp32_weights, reduce_lanes
from mpq_compile.kernels.tier import Tier
from mpq_compile.quant.exponential import LOG2_E

# Beyond so many rows packing keys and values pays.
MOST_ROWS = 8
# Vectors of output in registers, over all rows.
_CELLS = 16
# Multiply-adds below which a fork costs more than it gains, for each thread.
_SERIAL_MACS = 50_000
_LOWEST, _HIDDEN = -3.4028234663852886e38, float("-inf")


def fits(workload: AttentionWorkload) -> bool:
    """Tell whether this kernel computes a workload."""
    few = workload.queries <= MOST_ROWS and not workload.causal
    return few and workload.compute == "fp32"


def generate(workload: AttentionWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc ``main(Q, K, V, E, [M], O)``: that of ``attention.generate``."""
    heads = workload.batch * workload.heads
    tasks = 1 if workload.macs < _SERIAL_MACS * threads else min(threads, heads)
    padded = -(-workload.keys // tier.lanes) * tier.lanes
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)

        def argument(name: str, layout: Layout, dtype: str = "float32") -> Any:
            return T.arg(name, T.buffer((layout.size,), dtype))

        q, k, v = (argument(n, p) for n, p in zip("QKV", workload.operands, strict=True))
        record = T.arg("E", T.buffer((SCALAR_WORDS,), "int32"))
        mask = argument("M", workload.mask) if workload.mask else None
        output = argument("O", workload.output, FORMAT_DTYPE[workload.out])
        # Each head has scores of its own: a few kilobytes, whichever task comes to it.
        size = workload.queries * padded
        scores = T.alloc_buffer((heads * size,), "float32", align=64)

        def head(index: Any) -> None:
            _Head(
                workload=workload,
                lanes=tier.lanes,
                padded=padded,
                buffers=(q, k, v, mask, output),
                record=record,
                scores=scores,
                base=T.bind(index * size),
                index=index,
            ).emit()

        shared_range(heads, tasks, head)
    return builder.get()


@dataclass(frozen=True, kw_only=True)
class _Head:
    """Emits one head.

    Args:
        padded: Keys in whole vectors.
        buffers: q, k, v, mask (or None) and output.
        scores: float32 [heads][rows][padded], weights later; this head's start at ``base``.
        index: batch · heads + head.
    """

    workload: AttentionWorkload
    lanes: int
    padded: int
    buffers: tuple[Any, Any, Any, Any, Any]
    record: Any
    scores: Any
    base: Any
    index: Any

    def emit(self) -> None:
        workload, lanes = self.workload, self.lanes
        rows = range(workload.queries)
        lines = [T.bind(self.base + r * self.padded) for r in rows]
        for line in lines:
            last = line + self.padded - lanes
            store(self.scores, last, lanes, splat(T.float32(_HIDDEN), lanes))
        self._scores(lines)
        factors = [self._softmax(line) for line in lines]
        width = min(lanes, 1 << (workload.value_depth.bit_length() - 1))
        starts = vector_starts(workload.value_depth, width)
        count = max(1, _CELLS // workload.queries)
        for group in range(0, len(starts), count):
            self._output(lines, factors, starts[group : group + count], width)

    def _start(self, layout: Layout) -> Any:
        heads = self.workload.heads
        batch = T.floordiv(self.index, heads) * layout.strides[0]
        return T.bind(layout.offset + batch + T.floormod(self.index, heads) * layout.strides[1])

    # Scores

    def _scores(self, lines: Sequence[Any]) -> None:
        workload, keys = self.workload, self._start(self.workload.k)
        scale = bound_scalar(self.record, "scale")
        with T.serial(workload.keys) as j:
            key = T.bind(keys + j * workload.k.strides[2])
            if self.buffers[3] is None:
                for r, line in enumerate(lines):
                    store(self.scores, line + j, 1, self._dot(r, key) * scale)
                return
            hidden = self._mask(j)
            with T.If(_any(hidden)):
                with T.Then():
                    for r, line in enumerate(lines):
                        store(self.scores, line + j, 1, self._dot(r, key) * scale + hidden[r])
                with T.Else():
                    for line in lines:
                        store(self.scores, line + j, 1, T.float32(_HIDDEN))

    def _mask(self, j: Any) -> list[Any]:
        """Return what the mask adds to key ``j``, for each row."""
        layout = self.workload.mask
        assert layout is not None
        start, rows = self._start(layout), range(self.workload.queries)
        return [T.bind(self.buffers[3][start + r * layout.strides[2] + j]) for r in rows]

    def _dot(self, row: int, key: Any) -> Any:
        """Return the product of a query row and a key."""
        workload, lanes = self.workload, self.lanes
        query = T.bind(self._start(workload.q) + row * workload.q.strides[2])
        q, k = self.buffers[:2]
        whole, rest = divmod(workload.depth, lanes)
        total = T.alloc_buffer((1,), "float32")
        store(total, 0, 1, T.float32(0))
        if whole:
            cell = T.alloc_buffer((lanes,), "float32")
            store(cell, 0, lanes, splat(T.float32(0), lanes))
            with T.serial(whole) as i:
                a, b = (load(x, at + i * lanes, lanes) for x, at in ((q, query), (k, key)))
                store(cell, 0, lanes, load(cell, 0, lanes) + a * b)
            summed = reduce_lanes(load(cell, 0, lanes), lambda a, b: a + b, lanes)
            store(total, 0, 1, permute([summed], [0]))
        for i in range(workload.depth - rest, workload.depth):
            store(total, 0, 1, total[0] + q[query + i] * k[key + i])
        return T.bind(total[0])

    # Weights

    def _softmax(self, line: Any) -> Any:
        """Turn a row of scores into weights; return what scales their sums."""
        lanes, vectors = self.lanes, self.padded // self.lanes
        top = T.alloc_buffer((lanes,), "float32")
        store(top, 0, lanes, splat(T.float32(_LOWEST), lanes))
        with T.serial(vectors) as i:
            s = load(self.scores, line + i * lanes, lanes)
            store(top, 0, lanes, T.max(load(top, 0, lanes), s))
        highest = reduce_lanes(load(top, 0, lanes), T.max, lanes)
        total = T.alloc_buffer((lanes,), "float32")
        store(total, 0, lanes, splat(T.float32(0), lanes))
        with T.serial(vectors) as i:
            at = T.bind(line + i * lanes)
            z = (load(self.scores, at, lanes) - highest) * splat(T.float32(LOG2_E), lanes)
            stored, summed = fp32_weights(z, lanes)
            store(self.scores, at, lanes, stored)
            store(total, 0, lanes, load(total, 0, lanes) + summed)
        whole = permute([reduce_lanes(load(total, 0, lanes), lambda a, b: a + b, lanes)], [0])
        scale = bound_scalar(self.record, "residual_scale")
        return T.bind(scale / T.max(whole, T.float32(1)))

    # Output

    def _output(
        self, lines: Sequence[Any], factors: Sequence[Any], starts: Sequence[int], width: int
    ) -> None:
        """Sum the weighted values of the columns from ``starts`` on."""
        workload, v = self.workload, self.buffers[2]
        values, count = self._start(workload.v), len(starts)
        cells = [T.alloc_buffer((width,), "float32") for _ in range(len(lines) * count)]
        for cell in cells:
            store(cell, 0, width, splat(T.float32(0), width))
        with T.serial(workload.keys) as j:
            weights = [T.bind(self.scores[line + j]) for line in lines]
            with T.If(_any(weights, T.float32(0))), T.Then():
                value = T.bind(values + j * workload.v.strides[2])
                columns = [T.bind(load(v, value + start, width)) for start in starts]
                for index, cell in enumerate(cells):
                    product = columns[index % count] * splat(weights[index // count], width)
                    store(cell, 0, width, load(cell, 0, width) + product)
        self._finish(cells, factors, starts, width)

    def _finish(
        self, cells: Sequence[Any], factors: Sequence[Any], starts: Sequence[int], width: int
    ) -> None:
        workload, count = self.workload, len(starts)
        lo, hi, zero_point = (bound_scalar(self.record, name) for name in ("lo", "hi", "zp_out"))
        out = self._start(workload.output)
        for index, cell in enumerate(cells):
            r, column = index // count, starts[index % count]
            v = T.bind(load(cell, 0, width) * splat(factors[r], width))
            place = out + (r * workload.output.strides[2] + column)
            store(self.buffers[4], place, width, narrow(v, workload.out, lo, hi, zero_point, width))


def _any(values: Sequence[Any], above: Any = None) -> Any:
    """Tell whether one of some numbers is above a bound; −inf by default."""
    bound = T.float32(_HIDDEN) if above is None else above
    found = values[0] > bound
    for value in values[1:]:
        found = T.Or(found, value > bound)
    return found

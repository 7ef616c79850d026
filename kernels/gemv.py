"""Few-row linear layers over packed 8-, 4- and 2-bit weights: bound by memory, not arithmetic.

Unpacking is a shift and a mask, because the kernel multiplies codes c = w + 2^(b−1) with centred
inputs x − 128 and corrects the sum exactly::

    Σ w·(x − zp) = Σ c·(x − 128) − 2^(b−1)·Σ (x − 128) + (128 − zp)·Σ w

The last term is the record's compensation. Where weights have scales by groups it is as long as
the scales, so that memory is better spent on codes: with products to spare, those of the codes
with ones give Σ c, and Σ w = Σ c − n·2^(b−1). Weight-only layers (bf16 inputs) correct likewise
in float32. Every task centres the input into scratch of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.kernels.arguments import Buffers, declare_arguments, epilogue_of
from mpq_compile.kernels.blocking import Block, rank_splits
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.code_step import CodeStep, code_step
from mpq_compile.kernels.emit import (
    llvm_functions,
    load,
    prefetch,
    scalar,
    splat,
    store,
    task_loop,
    vector,
)
from mpq_compile.kernels.epilogue import Epilogue
from mpq_compile.kernels.gemv_layout import CodeLayout, code_layout
from mpq_compile.kernels.implicit_gemm import whole_or_tail
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import LinearWorkload

# Codes below this many bytes lie in a core's own cache when they are timed again and again.
CACHED_BYTES = 2 * 1024 * 1024
# Distances of prefetching that are tried beyond it, in bytes.
PREFETCHES = (0, 1024, 4096)


def choices(workload: LinearWorkload, tier: Tier, threads: int) -> list[Choice]:
    """Return what may be chosen, the tier's own prefetch first; the codes' layout fixes the rest.

    Only what does not fit a core's cache is worth another distance.
    """
    layout = code_layout(workload, tier)
    distances = PREFETCHES if layout.size > CACHED_BYTES else ()
    (split,) = rank_splits(
        macs=workload.macs,
        channel_blocks=-(-layout.vectors // layout.block),
        row_blocks=1,
        input_bytes=0,
        weight_bytes=layout.size,
        threads=threads,
    )[:1]
    block = Block(rows=workload.rows, columns=1, vectors=layout.block)
    return [
        Choice(block=block, split=split, prefetch_bytes=distance)
        for distance in dict.fromkeys((layout.prefetch_bytes, *distances))
    ]


def generate(
    workload: LinearWorkload, tier: Tier, threads: int, choice: Choice | None = None
) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a few-row linear layer."""
    choice = choice or choices(workload, tier, threads)[0]
    layout = replace(code_layout(workload, tier), prefetch_bytes=choice.prefetch_bytes)
    step = code_step(workload, tier)
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        buffers = declare_arguments(workload, tier)
        epilogue = epilogue_of(workload, tier, buffers)
        with llvm_functions(step.llvm_ir + epilogue.llvm_ir):
            _emit(workload, layout, step, buffers, epilogue, choice.split.channels)
    return builder.get()


def _emit(
    workload: LinearWorkload, layout: CodeLayout, step: CodeStep, buffers: Buffers,
    epilogue: Epilogue, tasks: int,
) -> None:  # fmt: skip
    """Allocate scratch; every task centres the input and visits its channel blocks."""
    blocks = -(-layout.vectors // layout.block)
    sums = workload.rows * layout.groups
    inputs = -(-sums * layout.run // 64) * 64
    tile = workload.rows * layout.block * layout.lanes
    scratch = T.alloc_buffer((tasks * inputs,), step.input_dtype, align=64)
    totals = T.alloc_buffer((tasks * sums,), step.accumulator, align=64)
    spilled = T.alloc_buffer((tasks * tile,), _tile_dtype(layout, step), align=64)
    per_task = -(-blocks // tasks)
    with task_loop(tasks) as task:
        kernel = _FewRows(
            workload=workload,
            layout=layout,
            step=step,
            buffers=buffers,
            epilogue=epilogue,
            inputs=scratch,
            input_base=T.bind(task * inputs),
            totals=totals,
            total_base=T.bind(task * sums),
            tile=spilled,
            tile_base=T.bind(task * tile),
        )
        kernel.centre()
        with T.serial(per_task) as i:
            block = T.bind(task * per_task + i)
            with T.If(block < blocks), T.Then():
                for whole, vectors in whole_or_tail(block, layout.vectors, layout.block):
                    with T.If(whole), T.Then():
                        kernel.block(T.bind(block * layout.block), vectors)


def _tile_dtype(layout: CodeLayout, step: CodeStep) -> str:
    return "float32" if layout.groups > 1 else step.accumulator


@dataclass(frozen=True, kw_only=True)
class _FewRows:
    """One task: its buffers and their bases."""

    workload: LinearWorkload
    layout: CodeLayout
    step: CodeStep
    buffers: Buffers
    epilogue: Epilogue
    inputs: Any
    input_base: Any
    totals: Any
    total_base: Any
    tile: Any
    tile_base: Any

    def _centre(self) -> Any:
        """Return 128 − zp of the inputs."""
        return T.int32(128) - scalar(self.buffers.record, "zp_in")

    def centre(self) -> None:
        """Write the inputs as the dot product reads them, and their sums per group."""
        layout, size = self.layout, self.workload.in_features // self.layout.groups
        with T.serial(self.workload.rows * layout.groups) as g:
            source = T.bind(g * size)
            target = T.bind(self.input_base + g * layout.run)
            total = self._centre_span(source, target, size)
            if layout.sums_codes:
                total = total + T.int32(size) * self._centre()
            factor = T.cast(-self.step.correction, self.step.accumulator)
            store(self.totals, self.total_base + g, 1, total * factor)
            for pad in range(size, layout.run):
                store(self.inputs, target + pad, 1, T.cast(0, self.step.input_dtype))

    def _centre_span(self, source: Any, target: Any, size: int) -> Any:
        """Centre ``size`` inputs and return their sum."""
        step, lanes = self.step, self.layout.lanes
        partial = T.alloc_buffer((lanes,), step.accumulator)
        rest = T.alloc_buffer((1,), step.accumulator)
        zero = T.cast(0, step.accumulator)
        store(partial, 0, lanes, splat(zero, lanes))
        store(rest, 0, 1, zero)
        if size >= lanes:
            with T.serial(size // lanes) as i:
                at = i * lanes
                value = T.bind(step.centred(load(self.buffers.inputs, source + at, lanes), lanes))
                store(partial, 0, lanes, load(partial, 0, lanes) + value)
                store(self.inputs, target + at, lanes, step.stored(value, lanes))
        for at in range(size // lanes * lanes, size):
            scalar_value = T.bind(step.centred(self.buffers.inputs[source + at], 1))
            store(rest, 0, 1, rest[0] + scalar_value)
            store(self.inputs, target + at, 1, step.stored(scalar_value, 1))
        return rest[0] + step.reduced(load(partial, 0, lanes))

    def block(self, first: Any, vectors: int) -> None:
        """Emit a block of ``vectors`` channel vectors from vector ``first``."""
        layout, lanes = self.layout, self.layout.lanes
        weights = T.bind(first * (layout.groups * layout.words * lanes * 4))
        channels = [T.bind(self._channel(first + v)) for v in range(vectors)]
        cells = self._cells(vectors, self.step.accumulator)
        if layout.groups > 1:
            cells = self._groups(first, weights, channels, cells)
        else:
            self._start(cells, channels, 0)
            self._words(cells, weights, 0, vectors, [])
        for index, cell in enumerate(cells):
            store(self.tile, self.tile_base + index * lanes, lanes, load(cell, 0, lanes))
        self._finish(channels)

    def _groups(
        self, first: Any, weights: Any, channels: Sequence[Any], cells: list[Any]
    ) -> list[Any]:
        """Add the scaled sum of each weight group; biases first."""
        lanes, vectors = self.layout.lanes, len(channels)
        sums = self._cells(vectors, "float32")
        scales = T.bind(first * (self.layout.groups * lanes))
        ones = self._cells(vectors, "int32")[:vectors] if self.layout.sums_codes else []
        centre = T.bind(self._centre()) if ones else None
        for index, cell in enumerate(sums):
            store(cell, 0, lanes, self.epilogue.first(channels[index % vectors]))
        with T.serial(self.layout.groups) as group:
            self._start(cells, channels, group)
            span = self.layout.words * vectors * lanes * 4
            self._words(cells, T.bind(weights + group * span), group, vectors, ones)
            for index, (cell, total) in enumerate(zip(cells, sums, strict=True)):
                v, value = index % vectors, load(cell, 0, lanes)
                if ones:
                    value = value + load(ones[v], 0, lanes) * splat(centre, lanes)
                scale = self.epilogue.group_scale(scales + (group * vectors + v) * lanes)
                product = self.epilogue.scaled(value, scale)
                store(total, 0, lanes, load(total, 0, lanes) + product)
        return sums

    def _cells(self, vectors: int, dtype: str) -> list[Any]:
        count = self.workload.rows * vectors
        return [T.alloc_buffer((self.layout.lanes,), dtype) for _ in range(count)]

    def _channel(self, index: Any) -> Any:
        outputs, lanes = self.workload.out_features, self.layout.lanes
        start = index * lanes
        if outputs % lanes and outputs > lanes:
            return T.min(start, outputs - lanes)
        return start

    def _start(self, cells: Sequence[Any], channels: Sequence[Any], group: Any) -> None:
        """Start from the compensation, if any, less the correction of each row's inputs."""
        lanes, vectors = self.layout.lanes, len(channels)
        for index, cell in enumerate(cells):
            row, v = divmod(index, vectors)
            total = self.totals[self.total_base + row * self.layout.groups + group]
            value = splat(total, lanes)
            if self.layout.compensated:
                value = value + self.epilogue.compensation(channels[v], group)
            store(cell, 0, lanes, value)

    def _words(
        self, cells: Sequence[Any], weights: Any, group: Any, vectors: int, ones: Sequence[Any]
    ) -> None:
        """Multiply one weight group, word by word; sum its codes into ``ones``, if any."""
        layout, rows = self.layout, self.workload.rows
        for cell in ones:
            store(cell, 0, layout.lanes, splat(T.int32(0), layout.lanes))
        size = layout.lanes * 4
        with T.serial(layout.words) as word:
            at = T.bind(weights + word * (vectors * size))
            starts = [
                T.bind(
                    self.input_base
                    + (row * layout.groups + group) * layout.run
                    + word * layout.codes_per_word
                )
                for row in range(rows)
            ]
            for v in range(vectors):
                if layout.prefetch_bytes:
                    prefetch(self.buffers.weights, at + v * size + layout.prefetch_bytes)
                packed = T.bind(
                    T.reinterpret(
                        vector("uint32", layout.lanes),
                        load(self.buffers.weights, at + v * size, size),
                    )
                )
                self._steps(cells[v::vectors], packed, starts, ones[v : v + 1])

    def _steps(
        self, cells: Sequence[Any], packed: Any, starts: Sequence[Any], ones: Sequence[Any]
    ) -> None:
        """Multiply the codes of one word vector with every row, and with ones."""
        step, lanes = self.step, self.layout.lanes
        for s in range(self.layout.steps):
            codes = T.bind(step.codes(packed, s))
            for cell, start in zip(cells, starts, strict=True):
                x = step.broadcast(self.inputs, start + s * self.layout.k_group)
                store(cell, 0, lanes, step.add(load(cell, 0, lanes), codes, x))
            for cell in ones:
                store(cell, 0, lanes, step.add(load(cell, 0, lanes), codes, step.ones()))

    def _finish(self, channels: Sequence[Any]) -> None:
        lanes, vectors = self.layout.lanes, len(channels)
        factors = self.epilogue.factors(channels)
        with T.serial(self.workload.rows) as row:
            for v, channel in enumerate(channels):
                value = load(self.tile, self.tile_base + (row * vectors + v) * lanes, lanes)
                value = self.epilogue.total(value, factors[v], row)
                self.epilogue.finish(value, row * self.workload.out_features + channel)

"""Convolution and linear layers as one implicit GEMM, blocked in registers.

A task stages the input rows it needs, then multiplies blocks of output pixels with vectors of
output channels: for each step of k it loads one weight vector per column of the block and
broadcasts ``k_group`` input elements per pixel. Weights are laid out
``[group][vector][outer run][inner run][step][lanes][k_group]`` (``packing.pack_weight``), which
does not depend on the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.kernels.blocking import Block, Split, choose_block, choose_split
from mpq_compile.kernels.emit import FORMAT_DTYPE, load, scalar, splat, store
from mpq_compile.kernels.epilogue import Epilogue
from mpq_compile.kernels.geometry import Geometry, geometry, padded_run, vector_starts
from mpq_compile.kernels.microkernel import DotStep, dot_step
from mpq_compile.kernels.packing import packed_weight_size, padded_channels, record_words
from mpq_compile.kernels.staging import Staging
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload

ELEMENT_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "float32": 4}


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """Arguments of a kernel, in order; ``residual`` is None where there is none."""

    inputs: Any
    weights: Any
    record: Any
    residual: Any
    output: Any


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a register block lies: offsets of its first pixel, and its channels."""

    source: Any
    pixel: Any
    output: Any
    group: Any
    vector: Any


def declare_arguments(workload: Workload, tier: Tier, input_dtype: str) -> Buffers:
    """Declare X, W, E, [R], O of a kernel."""
    size, dtype = packed_weight_size(workload, tier)
    residual = workload.residual
    return Buffers(
        inputs=T.arg("X", T.buffer((workload.input_size,), input_dtype)),
        weights=T.arg("W", T.buffer((size,), dtype)),
        record=T.arg("E", T.buffer((record_words(workload, tier),), "int32")),
        residual=T.arg("R", T.buffer((workload.output_size,), FORMAT_DTYPE[residual]))
        if residual
        else None,
        output=T.arg("O", T.buffer((workload.output_size,), FORMAT_DTYPE[workload.out])),
    )


def epilogue_of(workload: Workload, tier: Tier, buffers: Buffers, lanes: int) -> Epilogue:
    """Return the epilogue of a workload for vectors of ``lanes`` channels."""
    shape = geometry(workload)
    return Epilogue(
        record=buffers.record,
        residual=buffers.residual,
        output=buffers.output,
        residual_format=workload.residual,
        out_format=workload.out,
        columns=padded_channels(workload, tier),
        lanes=lanes,
        width=min(lanes, shape.group_outputs),
        scale_groups=shape.scale_groups,
    )


@contextmanager
def task_loop(tasks: int) -> Iterator[Any]:
    """Run ``tasks`` tasks in parallel; a single one does not fork."""
    with T.parallel(tasks) if tasks > 1 else T.serial(1) as task:
        yield task


def generate(workload: Workload, tier: Tier, threads: int) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a convolution or linear layer."""
    kernel = ImplicitGemm.plan(workload, tier, threads)
    with IRBuilder() as builder:
        with prim_func(s_tir=True):
            T.func_name("main")
            kernel.emit(declare_arguments(workload, tier, kernel.step.input_dtype))
    return builder.get()


@dataclass(frozen=True, kw_only=True)
class ImplicitGemm:
    """One planned kernel: geometry, dot product step, register block and split over threads."""

    workload: Workload
    tier: Tier
    shape: Geometry
    step: DotStep
    block: Block
    split: Split
    run_steps: int

    @classmethod
    def plan(cls, workload: Workload, tier: Tier, threads: int) -> ImplicitGemm:
        """Choose block and split for ``threads``."""
        shape, step = geometry(workload), dot_step(workload, tier)
        vectors = len(vector_starts(shape.group_outputs, step.lanes))
        block = choose_block(shape, vectors, tier.registers, step.cost)
        weights, weight_dtype = packed_weight_size(workload, tier)
        split = choose_split(
            macs=workload.macs,
            channel_blocks=shape.groups * -(-vectors // block.vectors),
            row_blocks=shape.batch * -(-shape.out_height // block.rows),
            input_bytes=workload.input_size * ELEMENT_BYTES[step.input_dtype],
            weight_bytes=weights * ELEMENT_BYTES[weight_dtype],
            threads=threads,
        )
        return cls(
            workload=workload,
            tier=tier,
            shape=shape,
            step=step,
            block=block,
            split=split,
            run_steps=padded_run(workload, tier) // step.k_group,
        )

    @property
    def vectors(self) -> int:
        """Vectors of output channels in one group."""
        return -(-self.shape.group_outputs // self.step.lanes)

    @property
    def row_blocks(self) -> int:
        """Row blocks of one image."""
        return -(-self.shape.out_height // self.block.rows)

    @property
    def is_staged(self) -> bool:
        """Tell whether the input is copied: padded, or read past the end of a run."""
        return self.shape.is_padded() or self.shape.run % self.step.k_group != 0

    @property
    def rows_per_task(self) -> int:
        """Row blocks of one task."""
        return -(-self.shape.batch * self.row_blocks // self.split.rows)

    def emit(self, buffers: Buffers) -> None:
        """Emit the whole kernel into the function under construction."""
        epilogue = epilogue_of(self.workload, self.tier, buffers, self.step.lanes)
        staging = self._staging()
        scratch = None
        if self.is_staged:
            size = (self.split.tasks * staging.size,)
            scratch = T.sblock_alloc_buffer(size, self.step.input_dtype, align=64)
        with task_loop(self.split.tasks) as task:
            across = T.bind(T.floormod(task, self.split.channels))
            first = T.bind(T.floordiv(task, self.split.channels) * self.rows_per_task)
            row, base, source = 0, 0, buffers.inputs
            if scratch is not None:
                row, base, source = T.bind(self._first_row(first)), task * staging.size, scratch
                staging.emit(scratch, base, buffers.inputs, row, self._blank(buffers))
            self._blocks(buffers, epilogue, source, base - row * self.shape.row_size, across, first)

    def _staging(self) -> Staging:
        return Staging(
            shape=self.shape,
            rows=self._staged_rows(),
            slack=self.step.k_group - 1,
            clear_slack=self.step.accumulator == "float32",
            lanes=4 * self.tier.lanes // ELEMENT_BYTES[self.step.input_dtype],
        )

    def _staged_rows(self) -> int:
        """Return the most padded input rows that lie under one task's output rows."""
        shape, total = self.shape, self.shape.batch * self.row_blocks
        needed = 0
        for first in range(0, total, self.rows_per_task):
            last = min(first + self.rows_per_task, total) - 1
            image, block = divmod(last, self.row_blocks)
            bottom = min((block + 1) * self.block.rows, shape.out_height) - 1
            end = image * shape.padded_height + bottom * shape.stride[0] + shape.window_rows
            needed = max(needed, end - self._first_row(first))
        return needed

    def _first_row(self, row_block: Any) -> Any:
        """Return the first padded input row under a row block."""
        image, block = row_block // self.row_blocks, row_block % self.row_blocks
        return image * self.shape.padded_height + block * (self.block.rows * self.shape.stride[0])

    def _blank(self, buffers: Buffers) -> Any:
        if self.step.input_dtype == "uint8":
            return T.bind(T.cast(scalar(buffers.record, "zp_in"), "uint8"))
        return T.float32(0) if self.step.input_dtype == "float32" else T.uint16(0)

    def _blocks(
        self, buffers: Buffers, epilogue: Epilogue, source: Any, base: Any, across: Any, first: Any
    ) -> None:
        """Loop over a task's channel blocks and row blocks."""
        units = self.shape.groups * -(-self.vectors // self.block.vectors)
        per_task = -(-units // self.split.channels)
        total = self.shape.batch * self.row_blocks
        extents = (self.rows_per_task, per_task)
        outer, inner = extents if self.split.rows_outer else extents[::-1]
        with T.serial(outer) as i, T.serial(inner) as j:
            rows, channels = (i, j) if self.split.rows_outer else (j, i)
            row_block = T.bind(first + rows)
            unit = T.bind(across * per_task + channels)
            with T.If(T.And(row_block < total, unit < units)), T.Then():
                self._unit(buffers, epilogue, source, base, unit, row_block)

    def _unit(
        self, buffers: Buffers, epilogue: Epilogue, source: Any, base: Any, unit: Any, rows: Any
    ) -> None:
        """Emit the row of register blocks of one channel block, tails included."""
        per_group = -(-self.vectors // self.block.vectors)
        group = T.bind(T.floordiv(unit, per_group))
        column = T.bind(T.floormod(unit, per_group))
        image = T.bind(T.floordiv(rows, self.row_blocks))
        line = T.bind(T.floormod(rows, self.row_blocks))
        full = (self.shape.out_height // self.block.rows, self.vectors // self.block.vectors)
        for tall, height in whole_or_tail(line, full[0], self.shape.out_height, self.block.rows):
            for wide, vectors in whole_or_tail(column, full[1], self.vectors, self.block.vectors):
                with T.If(T.And(tall, wide)), T.Then():
                    top = T.bind(line * self.block.rows)
                    first = T.bind(column * self.block.vectors)
                    start = base + (
                        image * self.shape.padded_height + top * self.shape.stride[0]
                    ) * self.shape.row_size
                    out = (image * self.shape.out_height + top) * self.shape.out_width
                    place = Place(
                        source=source, pixel=start, output=out, group=group, vector=first
                    )
                    self._columns(buffers, epilogue, place, height, vectors)

    def _columns(
        self, buffers: Buffers, epilogue: Epilogue, place: Place, height: int, vectors: int
    ) -> None:
        """Emit the register blocks along one row of the image."""
        width = self.block.columns
        whole, tail = divmod(self.shape.out_width, width)
        if whole:
            with T.serial(whole) as i:
                block = Block(rows=height, columns=width, vectors=vectors)
                self._block(buffers, epilogue, place, i * width, block)
        if tail:
            block = Block(rows=height, columns=tail, vectors=vectors)
            self._block(buffers, epilogue, place, whole * width, block)

    def _block(
        self, buffers: Buffers, epilogue: Epilogue, place: Place, left: Any, block: Block
    ) -> None:
        """Emit one register block: start, multiply, finish."""
        shape, lanes = self.shape, self.step.lanes
        with T.sblock("block"):
            T.reads()
            T.writes()
            channels = [T.bind(self._channel(place, v)) for v in range(block.vectors)]
            pixel = T.bind(
                place.pixel
                + left * (shape.stride[1] * shape.channels)
                + place.group * shape.group_inputs
            )
            out = T.bind((place.output + left) * shape.out_channels)
            offsets = [
                (r * shape.out_width + c) * shape.out_channels
                for r in range(block.rows)
                for c in range(block.columns)
            ]
            acc = accumulators(block.pixels * block.vectors, lanes, self.step.accumulator)
            if shape.scale_groups > 1:
                sums = accumulators(len(acc), lanes, "float32")
                self._scaled_groups(buffers, epilogue, place, pixel, block, channels, acc, sums)
            else:
                self._start(epilogue, acc, channels)
                self._multiply(buffers, place, pixel, block, acc)
            for i, offset in enumerate(offsets):
                for v, channel in enumerate(channels):
                    index = i * block.vectors + v
                    if shape.scale_groups > 1:
                        value = load(sums[index], 0, lanes)
                    else:
                        product = epilogue.scaled(
                            load(acc[index], 0, lanes), self.step.accumulator, channel
                        )
                        value = product + epilogue.bias(channel)
                    epilogue.finish(value, out + offset + channel)

    def _channel(self, place: Place, index: int) -> Any:
        """Return the first output channel of a vector; the last one moves back to fit."""
        outputs, lanes = self.shape.group_outputs, self.step.lanes
        start = (place.vector + index) * lanes
        if outputs % lanes and outputs > lanes:
            start = T.min(start, outputs - lanes)
        return place.group * outputs + start

    def _start(
        self, epilogue: Epilogue, acc: list[Any], channels: list[Any], group: Any = 0
    ) -> None:
        """Set accumulators to the compensation, or to zero."""
        for index, cell in enumerate(acc):
            if self.step.accumulator == "int32":
                value = epilogue.compensation(channels[index % len(channels)], group)
            else:
                value = splat(T.float32(0), self.step.lanes)
            store(cell, 0, self.step.lanes, value)

    def _scaled_groups(
        self, buffers: Buffers, epilogue: Epilogue, place: Place, pixel: Any, block: Block,
        channels: list[Any], acc: list[Any], sums: list[Any],
    ) -> None:  # fmt: skip
        """Multiply one weight group after the other; sums are float32, biases first."""
        lanes = self.step.lanes
        for index, cell in enumerate(sums):
            store(cell, 0, lanes, epilogue.bias(channels[index % len(channels)]))
        with T.serial(self.shape.scale_groups) as group:
            self._start(epilogue, acc, channels, group)
            self._steps(buffers, place, pixel, block, acc, group, 0)
            for index, cell in enumerate(sums):
                channel = channels[index % len(channels)]
                product = epilogue.scaled(load(acc[index], 0, lanes), "int32", channel, group)
                store(cell, 0, lanes, load(cell, 0, lanes) + product)

    def _multiply(
        self, buffers: Buffers, place: Place, pixel: Any, block: Block, acc: list[Any]
    ) -> None:
        outer, inner = self.shape.runs
        with T.serial(outer) as i, T.serial(inner) as j:
            self._steps(buffers, place, pixel, block, acc, i, j)

    def _steps(
        self, buffers: Buffers, place: Place, pixel: Any, block: Block, acc: list[Any],
        outer: Any, inner: Any,
    ) -> None:  # fmt: skip
        """Multiply one run."""
        shape, step = self.shape, self.step
        size = step.lanes * step.k_group
        runs = shape.runs[0] * shape.runs[1]
        panel = runs * self.run_steps * size
        first = place.group * self.vectors + place.vector
        at = T.bind(
            first * panel + (outer * shape.runs[1] + inner) * self.run_steps * size
        )
        start = T.bind(pixel + outer * shape.run_strides[0] + inner * shape.run_strides[1])
        with T.serial(self.run_steps) as k:
            weights = [
                T.bind(step.weights(buffers.weights, at + v * panel + k * size))
                for v in range(block.vectors)
            ]
            for index in range(block.pixels):
                row, column = divmod(index, block.columns)
                move = row * shape.stride[0] * shape.row_size
                move += column * shape.stride[1] * shape.channels
                x = T.bind(step.pixel(place.source, start + move + k * step.k_group))
                for v, w in enumerate(weights):
                    cell = acc[index * block.vectors + v]
                    store(cell, 0, step.lanes, step.add(load(cell, 0, step.lanes), x, w))


def accumulators(count: int, lanes: int, dtype: str) -> list[Any]:
    """Allocate one small buffer for each accumulator; LLVM keeps them in registers."""
    return [T.sblock_alloc_buffer((lanes,), dtype) for _ in range(count)]


def whole_or_tail(index: Any, whole: int, extent: int, size: int) -> list[tuple[Any, int]]:
    """Return (condition, size) of the whole blocks and of the remainder, where they exist."""
    always = T.bool(True)
    if extent % size == 0:
        return [(always, size)]
    if whole == 0:
        return [(always, extent % size)]
    return [(index < whole, size), (index >= whole, extent % size)]

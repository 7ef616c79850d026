"""Convolution and linear layers as one implicit GEMM, blocked in registers.

A task stages the input rows it needs, then multiplies blocks of output pixels with vectors of
output channels: for each step of k it loads one weight vector per column of the block and
broadcasts ``k_group`` input elements per pixel. Weights are laid out
``[group][vector][outer run][inner run][step][lanes][k_group]`` (``packing.pack_weight``), which
does not depend on the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.kernels.blocking import Block, Split, choose_block, choose_split
from mpq_compile.kernels.emit import FORMAT_DTYPE, llvm_functions, load, scalar, splat, store, task_loop
from mpq_compile.kernels.epilogue import Epilogue
from mpq_compile.kernels.geometry import Geometry, geometry, padded_run, vector_starts
from mpq_compile.kernels.microkernel import DotStep, dot_step
from mpq_compile.kernels.packing import packed_weight_size, padded_channels, record_words
from mpq_compile.kernels.staging import Staging
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload

ELEMENT_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "float32": 4}


def generate(workload: Workload, tier: Tier, threads: int) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a convolution or linear layer."""
    kernel = ImplicitGemm.plan(workload, tier, threads)
    with IRBuilder() as builder:
        with prim_func(s_tir=True):
            T.func_name("main")
            buffers = declare_arguments(workload, tier, kernel.step.input_dtype)
            with llvm_functions(kernel.step.llvm_ir):
                kernel.emit(buffers)
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


def whole_or_tail(index: Any, whole: int, extent: int, size: int) -> list[tuple[Any, int]]:
    """Return (condition, size) of the whole blocks and of the remainder, where they exist."""
    always = T.bool(True)
    if extent % size == 0:
        return [(always, size)]
    if whole == 0:
        return [(always, extent % size)]
    return [(index < whole, size), (index >= whole, extent % size)]

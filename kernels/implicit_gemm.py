"""Convolution and linear layers as one implicit GEMM: loops over register blocks.

A task stages the input rows it needs, then multiplies blocks of output pixels with vectors of
output channels. Weights are laid out ``[group][vector][run][step][lanes][k_group]``
(``packing.pack_weight``), which does not depend on the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.kernels.arguments import Buffers, declare_arguments, epilogue_of
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.emit import llvm_functions, scalar, task_loop
from mpq_compile.kernels.epilogue import Epilogue
from mpq_compile.kernels.gemm_plan import GemmPlan, gemm_choices, plan_gemm
from mpq_compile.kernels.pixel_block import PixelBlock, Place
from mpq_compile.kernels.register_block import RegisterBlock
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload

BlockKind = Callable[..., PixelBlock]
# What ``generate`` may be given, the cost model's choice first.
choices = gemm_choices


def generate(workload: Workload, tier: Tier, threads: int, choice: Choice | None = None) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a convolution or linear layer."""
    return build(plan_gemm(workload, tier, threads, choice), RegisterBlock, workload, tier)


def build(plan: GemmPlan, kind: BlockKind, workload: Workload, tier: Tier) -> Any:
    """Return the PrimFunc of a planned workload whose blocks are of ``kind``."""
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        buffers = declare_arguments(workload, tier)
        epilogue = epilogue_of(workload, tier, buffers)
        with llvm_functions(plan.step.llvm_ir + epilogue.llvm_ir):
            _emit(plan, kind, buffers, epilogue)
    return builder.get()


def _emit(plan: GemmPlan, kind: BlockKind, buffers: Buffers, epilogue: Epilogue) -> None:
    """Allocate scratch, then stage and multiply in every task."""
    staging, tasks = plan.staging(), plan.split.tasks
    scratch = None
    if plan.is_staged:
        size = (tasks * staging.size,)
        scratch = T.alloc_buffer(size, plan.step.input_dtype, align=64)
    tile = T.alloc_buffer((tasks * plan.tile_distance,), plan.tile_dtype, align=64)
    with task_loop(tasks) as task:
        across = T.bind(T.floormod(task, plan.split.channels) * plan.channels_per_task)
        first = T.bind(T.floordiv(task, plan.split.channels) * plan.rows_per_task)
        source, origin = buffers.inputs, 0
        if scratch is not None:
            row = T.bind(plan.first_row(first))
            base = T.bind(task * staging.size)
            staging.emit(scratch, base, buffers.inputs, row, _blank(plan, buffers))
            source, origin = scratch, T.bind(base - row * plan.shape.row_size)
        block = kind(
            plan=plan,
            block=plan.block,
            source=source,
            weights=buffers.weights,
            epilogue=epilogue,
            tile=tile,
            tile_base=task * plan.tile_distance,
        )
        epilogue.surround(task, tasks)
        with block.task():
            _BlockLoops(plan=plan, block=block, origin=origin).emit(across, first)


def _blank(plan: GemmPlan, buffers: Buffers) -> Any:
    """Return the value of padding cells."""
    dtype = plan.step.input_dtype
    if plan.step.accumulator == "int32":
        return T.bind(T.cast(scalar(buffers.record, "zp_in"), dtype))
    return T.float32(0) if dtype == "float32" else T.uint16(0)


@dataclass(frozen=True, kw_only=True)
class _BlockLoops:
    """Loops over a task's register blocks; ``origin`` is the offset of padded row 0."""

    plan: GemmPlan
    block: PixelBlock
    origin: Any

    def emit(self, across: Any, first: Any) -> None:
        """Visit the channel blocks from ``across`` and the row blocks from ``first``."""
        plan = self.plan
        extents = (plan.rows_per_task, plan.channels_per_task)
        outer, inner = extents if plan.split.rows_outer else extents[::-1]
        with T.serial(outer) as i, T.serial(inner) as j:
            rows, channels = (i, j) if plan.split.rows_outer else (j, i)
            row_block, unit = T.bind(first + rows), T.bind(across + channels)
            inside = T.And(row_block < plan.all_row_blocks, unit < plan.channel_blocks)
            with T.If(inside), T.Then():
                following = None
                if not plan.split.rows_outer and plan.channels_per_task > 1:
                    last = T.min(across + plan.channels_per_task, plan.channel_blocks) - 1
                    following = T.bind(
                        self._panel(*_divided(T.min(unit + 1, last), plan.group_blocks))
                    )
                self._unit(row_block, unit, rows, following)

    def _panel(self, group: Any, column: Any) -> Any:
        """Return the offset of the weights of a group's channel block."""
        plan = self.plan
        return (group * plan.vectors + column * plan.block.vectors) * plan.panel_size

    def _unit(self, row_block: Any, unit: Any, row_blocks_before: Any, following: Any) -> None:
        """Emit one channel block over one row block, in whole or tail size."""
        plan = self.plan
        image, line = _divided(row_block, plan.row_blocks)
        group, column = _divided(unit, plan.group_blocks)
        top, vector = T.bind(line * plan.line_rows), T.bind(column * plan.block.vectors)
        row = image * plan.shape.padded_height + top * plan.shape.stride[0]
        pixel = T.bind(self.origin + row * plan.shape.row_size)
        output = T.bind((image * plan.shape.out_height + top) * plan.shape.out_width)
        for tall, rows in whole_or_tail(line, plan.shape.out_height, plan.line_rows):
            for wide, vectors in whole_or_tail(column, plan.vectors, plan.block.vectors):
                with T.If(T.And(tall, wide)), T.Then():
                    place = Place(
                        pixel=pixel,
                        output=output,
                        left=0,
                        group=group,
                        vector=vector,
                        turn=row_blocks_before * plan.line_blocks,
                        following=following,
                    )
                    self._columns(place, rows, vectors)

    def _columns(self, place: Place, rows: int, vectors: int) -> None:
        """Emit the blocks along one line."""
        size, line = self.plan.block_of(rows, vectors), self.plan.line_pixels(rows)
        whole, tail = divmod(line, size.columns)
        # As many tiles as a whole block: one that overlaps the last, finished alike.
        overlaps = bool(whole and tail and self.block.costs_whole(size, tail))
        if whole:
            wide = replace(self.block, block=size)
            wide.prepare()
            with T.serial(whole + overlaps) as i:
                left = i * size.columns
                if overlaps:
                    left = T.min(left, line - size.columns)
                wide.emit(self._right(place, left, i))
        if tail and not overlaps:
            narrow = replace(self.block, block=replace(size, columns=tail))
            narrow.prepare()
            narrow.emit(self._right(place, whole * size.columns, whole))

    def _right(self, place: Place, left: Any, blocks: Any) -> Place:
        """Return the place ``left`` pixels to the right, so many blocks later."""
        step = self.plan.shape.stride[1] * self.plan.shape.channels
        return replace(place, pixel=place.pixel + left * step, left=left, turn=place.turn + blocks)


def _divided(index: Any, size: int) -> tuple[Any, Any]:
    """Return quotient and remainder of an index."""
    return T.bind(T.floordiv(index, size)), T.bind(T.floormod(index, size))


def whole_or_tail(index: Any, extent: int, size: int) -> list[tuple[Any, int]]:
    """Return (condition, size) of the whole blocks and of the remainder, where they exist."""
    whole, tail = divmod(extent, size)
    if tail == 0 or whole == 0:
        return [(T.bool(True), size if tail == 0 else tail)]
    return [(index < whole, size), (index >= whole, tail)]

"""Convolution and linear layers on AMX tiles.

A tile holds up to 16 output pixels that lie at one distance from each other in the padded input:
pixels of a row, or of the whole padded image where windows that straddle two rows are computed
and dropped. Weights are laid out as for the register blocks, runs in tiles of up to 16 steps of k,
all of which are as deep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.kernels.arguments import ELEMENT_BYTES
from mpq_compile.kernels.blocking import Block
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.emit import prefetch, store
from mpq_compile.kernels.gemm_plan import GemmPlan, with_splits
from mpq_compile.kernels.geometry import geometry, padded_run, tile_steps
from mpq_compile.kernels.implicit_gemm import build
from mpq_compile.kernels.microkernel import dot_step
from mpq_compile.kernels.pixel_block import PixelBlock, Place
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.tile_blocking import rank_tiles, segments
from mpq_compile.kernels.tile_instructions import TileIntrinsics, TileUnit
from mpq_compile.kernels.workload import Workload

# Every how many bytes the next channels' weights are asked for: the processor fetches what lies
# between, and asking for each line would hold the buffers that loads need.
FETCH_BYTES = 256
# Blocks of the same channels beyond which weights take too little of the time for it to pay. With
# one block they come no faster than they are needed.
MOST_TURNS = 8


def generate(
    workload: Workload,
    tier: Tier,
    threads: int,
    choice: Choice | None = None,
    unit: type[TileUnit] = TileIntrinsics,
) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a workload that ``uses_tiles``.

    The process needs permission for the tiles: ``amx_permission``.
    """
    kind = partial(TileBlock, unit=unit(compute=workload.compute))
    return build(plan_tiles(workload, tier, threads, choice), kind, workload, tier)


def amx_permission() -> Any:
    """Return the PrimFunc ``main(status: int64[1])`` that asks Linux for the AMX tiles.

    Once per process, before the first tile kernel; status 0 means granted. It works from an
    exported library and on remote devices.
    """
    arch_prctl, request, tile_data = T.int64(158), T.int64(0x1023), T.int64(18)
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        status = T.arg("status", T.buffer((1,), "int64"))
        granted = T.call_extern("int64", "syscall", arch_prctl, request, tile_data)
        store(status, 0, 1, granted)
    return builder.get()


def choices(workload: Workload, tier: Tier, threads: int) -> list[Choice]:
    """Return what a plan may choose, the cost model's choice first."""
    shape = geometry(workload)
    tiles = rank_tiles(shape, -(-shape.group_outputs // tier.lanes), threads)
    return with_splits(workload, tier, tiles, threads)


def plan_tiles(workload: Workload, tier: Tier, threads: int, choice: Choice | None) -> GemmPlan:
    """Plan a workload for ``threads`` by ``choice``; None is the cost model's."""
    choice = choice or choices(workload, tier, threads)[0]
    shape = geometry(workload)
    step = replace(dot_step(workload, tier), llvm_ir="")
    run = padded_run(workload, tier)
    return GemmPlan(
        shape=shape,
        step=step,
        block=choice.block,
        split=choice.split,
        run_steps=run // step.k_group,
        vectors=-(-shape.group_outputs // step.lanes),
        slack=run - shape.run,
        copy_lanes=64 // ELEMENT_BYTES[step.input_dtype],
        flat_rows=choice.flat_rows,
        tile_steps=tile_steps(workload, tier),
    )


@dataclass(frozen=True, kw_only=True)
class Pending:
    """The block of a task whose sums lie in the tile and are not finished yet, if there is one."""

    words: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        """Prepare a task: no block waits."""
        self.words[:] = [T.alloc_buffer((16,), "int32")]
        self.clear()

    def clear(self) -> None:
        """Note that no block waits."""
        T.buffer_store(self.words[0], T.int32(0), [0])

    def set(self, place: Place, channels: Sequence[Any]) -> None:
        """Note that the block at ``place`` waits."""
        for index, word in enumerate((T.int32(1), place.output, place.left, *channels)):
            T.buffer_store(self.words[0], T.cast(word, "int32"), [index])

    @contextmanager
    def shown(self, vectors: int, condition: Any = True) -> Iterator[tuple[Any, Any, list[Any]]]:
        """Emit code for where a block waits: (output, left) of its place, and its channels."""
        words = self.words[0]

        def word(index: int) -> Any:
            # In 64 bits: TVM simplifies what is computed with it to literals beyond int32.
            return T.bind(T.cast(words[index], "int64"))

        with T.If(T.And(words[0] != 0, condition)), T.Then():
            yield word(1), word(2), [word(3 + v) for v in range(vectors)]

    @contextmanager
    def taken(self, vectors: int) -> Iterator[tuple[Any, Any, list[Any]]]:
        """Emit code for where a block waits, after which it does not."""
        with self.shown(vectors) as waiting:
            yield waiting
            self.clear()


@dataclass(frozen=True, kw_only=True)
class TileBlock(PixelBlock):
    """Accumulators are tiles: one for each segment of pixels and vector of channels."""

    unit: TileUnit
    pending: Pending = field(default_factory=Pending)

    @contextmanager
    def task(self) -> Iterator[None]:
        self.unit.begin()
        self.pending.begin()
        yield
        self._finish_pending()
        self.unit.end()

    def emit(self, place: Place) -> None:
        """Emit the block at ``place``; a whole one is finished while the next one multiplies."""
        if self.block == self._whole:
            channels = self._channels(place)
            self._multiply(place, channels)
            self.pending.set(place, channels)
            return
        self._finish_pending()
        super().emit(place)

    @property
    def _whole(self) -> Block:
        """The size of the blocks that wait: one size, so that one piece of code finishes them."""
        return self.plan.block_of(self.plan.line_rows, self.plan.block.vectors)

    def costs_whole(self, whole: Block, columns: int) -> bool:
        part = replace(whole, columns=columns)
        return len(segments(part, self.plan.shape)) == len(segments(whole, self.plan.shape))

    def _finish_pending(self) -> None:
        """Finish the block that waits, if one does."""
        with self.pending.taken(self.plan.block.vectors) as (output, left, channels):
            replace(self, block=self._whole)._finish(output, left, channels)

    def prepare(self) -> None:
        parts, full = segments(self.block, self.plan.shape), self.plan.block.vectors
        depth = self.plan.tile_steps
        rows = {self._weight_tile(v): depth for v in range(full)}
        for m, count in enumerate(parts):
            rows[self._input_tile(m)] = count
            rows |= {self._sum_tile(m, v): count for v in range(full)}
        inputs = {self._input_tile(m): 4 * depth for m in range(len(parts))}
        self.unit.configure(rows, inputs)

    def _sum_tile(self, segment: int, vector: int) -> int:
        return segment * self.plan.block.vectors + vector

    def _input_tile(self, segment: int) -> int:
        full = self.plan.block
        return len(segments(full, self.plan.shape)) * full.vectors + segment

    def _weight_tile(self, vector: int) -> int:
        return self._input_tile(len(segments(self.plan.block, self.plan.shape))) + vector

    def _multiply(self, place: Place, channels: Sequence[Any]) -> None:
        plan, lanes = self.plan, self.plan.step.lanes
        parts = segments(self.block, plan.shape)
        self._start(len(parts), place, channels)
        start = T.bind(place.pixel + place.group * plan.shape.group_inputs)
        panel = T.bind((place.group * plan.vectors + place.vector) * plan.panel_size)
        outer, inner = plan.shape.runs
        with T.serial(outer) as i, T.serial(inner) as j:
            self._run(start, panel, parts, i, j, place)
        width = len(channels) * lanes
        for m in range(len(parts)):
            for v in range(len(channels)):
                at = self.tile_base + sum(parts[:m]) * width + v * lanes
                self.unit.store(self._sum_tile(m, v), self.tile, at, width)

    def _start(self, count: int, place: Place, channels: Sequence[Any]) -> None:
        """Load the compensation into every row (a stride of 0), or clear the accumulators."""
        for m in range(count):
            for v, channel in enumerate(channels):
                tile = self._sum_tile(m, v)
                if self.unit.compute == "int8":
                    at = self.epilogue.compensation_offset(channel)
                    self.unit.load(tile, self.epilogue.record, at, 0)
                else:
                    self.unit.zero(tile)

    def _run(
        self, start: Any, panel: Any, parts: Sequence[int], outer: Any, inner: Any, place: Place
    ) -> None:
        """Multiply one run of contiguous input."""
        plan, step = self.plan, self.plan.step
        size, strides = step.lanes * step.k_group, plan.shape.run_strides
        source = T.bind(start + outer * strides[0] + inner * strides[1])
        index = outer * plan.shape.runs[1] + inner
        weights = T.bind(panel + index * (plan.run_steps * size))
        with T.serial(plan.run_steps // plan.tile_steps) as k:
            at = T.bind(source + k * (plan.tile_steps * step.k_group))
            for v in range(self.block.vectors):
                tile = weights + v * plan.panel_size + k * (plan.tile_steps * size)
                self.unit.load(self._weight_tile(v), self.weights, tile, size)
            for m, move in enumerate(self._moves(parts)):
                self.unit.load(self._input_tile(m), self.source, at + move, self._distance())
                for v in range(self.block.vectors):
                    tiles = self._sum_tile(m, v), self._input_tile(m), self._weight_tile(v)
                    self.unit.multiply(*tiles)
            done = index * (plan.run_steps // plan.tile_steps) + k
            self._fetch(place, done)
            if self.block == self._whole:
                self._finish_part(done)

    def _fetch(self, place: Place, done: Any) -> None:
        """Ask for this step's share of the next channels' weights."""
        plan = self.plan
        if place.following is None or not 2 <= plan.turns <= MOST_TURNS:
            return
        steps = plan.steps
        distance = FETCH_BYTES // ELEMENT_BYTES[self.weights.dtype]
        fetches = -(-plan.block.vectors * plan.panel_size // distance)
        share = -(-fetches // (plan.turns * steps))
        first = T.bind((place.turn * steps + done) * share)
        for i in range(share):
            at = place.following + T.min(first + i, fetches - 1) * distance
            prefetch(self.weights, at)

    def _finish_part(self, step: Any) -> None:
        """Finish this step's share of the block that waits.

        Products take the tile unit 16 cycles each and next to nothing of the vector units, where
        an epilogue takes five to ten cycles a vector: in turns they cost as much as the longer.
        """
        share = -(-self.block.pixels // self.plan.steps)
        first = T.bind(step * share)
        with self.pending.shown(self.plan.block.vectors, first < self.block.pixels) as waiting:
            output, left, channels = waiting
            finish = self._finisher(channels)
            with T.serial(share) as i:
                index = T.bind(first + i)
                with T.If(index < self.block.pixels), T.Then():
                    self._finish_at(index, output, left, finish)

    def _distance(self) -> int:
        """Return the distance between the inputs of neighbouring pixels of a tile."""
        shape = self.plan.shape
        if shape.out_width == 1:
            return shape.stride[0] * shape.row_size
        return shape.stride[1] * shape.channels

    def _moves(self, parts: Sequence[int]) -> list[int]:
        """Return the distance of each tile's first input from the block's."""
        shape = self.plan.shape
        moves = []
        for m in range(len(parts)):
            pixel = sum(parts[:m])
            row, column = divmod(pixel, self.block.columns)
            if shape.out_width == 1:
                moves.append(pixel * self._distance())
            else:
                moves.append(row * shape.stride[0] * shape.row_size + column * self._distance())
        return moves

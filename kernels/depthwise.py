"""Depthwise convolution: vectors run over channels, a block over some rows and columns.

A chunk of input rows (``depthwise_layout``) of one column is loaded once and serves every tap and
output that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.arguments import ELEMENT_BYTES, INPUT_DTYPE
from mpq_compile.kernels.blocking import Block, near_best
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.depthwise_layout import DepthwiseLayout, depthwise_layout
from mpq_compile.kernels.emit import load, permute, splat, store, vector, widen
from mpq_compile.kernels.gemm_plan import GemmPlan, with_splits
from mpq_compile.kernels.geometry import Geometry, geometry
from mpq_compile.kernels.implicit_gemm import build
from mpq_compile.kernels.microkernel import (
    DPBF16PS_IR,
    DotStep,
    FloatStep,
    Vdpbf16ps,
    Vpdpbusd,
    Vpmaddwd,
)
from mpq_compile.kernels.packing import packed_weight_size
from mpq_compile.kernels.pixel_block import PixelBlock, Place
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload


class Lanewise(DotStep):
    """int32 multiply-add of one row; LLVM picks the instruction."""

    def chunk(self, buffer: Any, offsets: Sequence[Any]) -> Any:
        """Load the rows at ``offsets``, ordered by channel."""
        return self.weights(buffer, offsets[0])


class LanewiseFloat(FloatStep):
    """float32 multiply-add of one row."""

    def chunk(self, buffer: Any, offsets: Sequence[Any]) -> Any:
        """Load the rows at ``offsets``, ordered by channel."""
        fmt = "bf16" if self.input_dtype == "uint16" else "fp32"
        return widen(load(buffer, offsets[0], self.lanes), fmt, None, self.lanes)


class VpdpbusdRows(Vpdpbusd):
    """AVX-512 VNNI: four rows of u8."""

    def chunk(self, buffer: Any, offsets: Sequence[Any]) -> Any:
        """Load the rows at ``offsets``, ordered by channel."""
        return _interleaved(buffer, offsets, self.lanes)


class VpmaddwdRows(Vpmaddwd):
    """AVX2: two rows of u8, widened to int16."""

    def chunk(self, buffer: Any, offsets: Sequence[Any]) -> Any:
        """Load the rows at ``offsets``, ordered by channel."""
        rows = _interleaved(buffer, offsets, self.lanes)
        return T.cast(rows, vector("int16", 2 * self.lanes))


class Vdpbf16psRows(Vdpbf16ps):
    """AVX-512 BF16: two rows."""

    def chunk(self, buffer: Any, offsets: Sequence[Any]) -> Any:
        """Load the rows at ``offsets``, ordered by channel."""
        return _interleaved(buffer, offsets, self.lanes)


def _interleaved(buffer: Any, offsets: Sequence[Any], lanes: int) -> Any:
    rows = [load(buffer, offset, lanes) for offset in offsets]
    order = [row * lanes + lane for lane in range(lanes) for row in range(len(rows))]
    return permute(rows, order)


def depthwise_step(workload: ConvWorkload, tier: Tier, k_group: int) -> DotStep:
    """Return the multiply-add of ``k_group`` rows that a tier offers."""
    lanes = tier.lanes
    if workload.compute == "int8":
        kinds = {4: VpdpbusdRows, 2: VpmaddwdRows, 1: Lanewise}
        return kinds[k_group](lanes=lanes, k_group=k_group)
    kind: DotStep = LanewiseFloat(lanes=lanes)
    if k_group == 2:
        kind = Vdpbf16psRows(lanes=lanes, k_group=2, llvm_ir=DPBF16PS_IR)
    return replace(
        kind,
        input_dtype=INPUT_DTYPE[workload.compute],
        weight_dtype=packed_weight_size(workload, tier)[1],
        accumulator="float32",
    )


def generate(workload: ConvWorkload, tier: Tier, threads: int, choice: Choice | None = None) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a depthwise convolution."""
    layout = depthwise_layout(workload, tier)
    plan = plan_depthwise(workload, tier, choice or choices(workload, tier, threads)[0], layout)
    return build(plan, partial(DepthwiseBlock, layout=layout), workload, tier)


def choices(workload: ConvWorkload, tier: Tier, threads: int) -> list[Choice]:
    """Return what may be chosen, the cost model's choice first; weights fix a block's rows."""
    shape, layout = geometry(workload), depthwise_layout(workload, tier)
    rows = min(layout.rows, shape.out_height)
    blocks = [
        (Block(rows=rows, columns=columns, vectors=1), 0)
        for columns in _columns(shape, layout, tier.registers)
    ]
    return with_splits(workload, tier, blocks, threads)


def plan_depthwise(
    workload: ConvWorkload, tier: Tier, choice: Choice, layout: DepthwiseLayout
) -> GemmPlan:
    """Plan a depthwise convolution by ``choice``."""
    shape, step = geometry(workload), depthwise_step(workload, tier, layout.k_group)
    return GemmPlan(
        shape=shape,
        step=step,
        block=choice.block,
        split=choice.split,
        run_steps=1,
        vectors=-(-shape.group_outputs // tier.lanes),
        slack=max(0, tier.lanes - shape.channels),
        copy_lanes=4 * tier.lanes // ELEMENT_BYTES[step.input_dtype],
    )


def _columns(shape: Geometry, layout: DepthwiseLayout, registers: int) -> list[int]:
    """Return the columns of a block for which whole rows load the fewest chunks, then others."""
    free = registers - len(layout.patterns) * layout.width - 3
    most = min(max(free // layout.rows, 4), shape.out_width)

    def blocks(columns: int) -> int:
        return -(-shape.out_width // columns)

    def loads(columns: int) -> float:
        """Chunks; of equal ones, the fewest columns in the last block."""
        span = (columns - 1) * shape.stride[1] + layout.width
        return blocks(columns) * span + shape.out_width % columns / shape.out_width

    return near_best(range(-(-most // 2), most + 1), loads, blocks)


@dataclass(frozen=True, kw_only=True)
class DepthwiseBlock(PixelBlock):
    """Some rows and columns of the output × one vector of channels."""

    layout: DepthwiseLayout

    def _multiply(self, place: Place, channels: Sequence[Any]) -> None:
        step, layout, block = self.plan.step, self.layout, self.block
        start = T.bind(place.pixel + channels[0])
        weights = self._weights(T.bind(place.vector * layout.vector_size))
        cells = self._cells(step.accumulator)
        first = splat(T.float32(0), step.lanes)
        if step.accumulator == "int32":
            first = T.bind(self.epilogue.compensation(channels[0]))
        for cell in cells:
            store(cell, 0, step.lanes, first)
        for index in range(len(layout.chunks)):
            users = [o for o in range(block.rows) if (o, index) in layout.met]
            if users:
                self._chunk(cells, start, index, users, weights)
        self._spill(cells)

    def _weights(self, start: Any) -> list[list[Any]]:
        """Load the weights: for each pattern, one vector a kernel column."""
        step, width = self.plan.step, self.layout.width
        size = step.lanes * step.k_group
        return [
            [
                T.bind(step.weights(self.weights, start + (pattern * width + x) * size))
                for x in range(width)
            ]
            for pattern in range(len(self.layout.patterns))
        ]

    def _chunk(
        self,
        cells: Sequence[Any],
        start: Any,
        index: int,
        users: Sequence[int],
        weights: Sequence[Sequence[Any]],
    ) -> None:
        """Multiply one chunk of rows; each input column is loaded once."""
        step, shape, columns = self.plan.step, self.plan.shape, self.block.columns
        rows = self._rows(index)
        numbers = [self.layout.patterns.index(self.layout.met[o, index]) for o in users]
        for column, reads in self._readers().items():
            offsets = [start + row * shape.row_size + column * shape.channels for row in rows]
            x = T.bind(step.chunk(self.source, offsets))  # type: ignore[attr-defined]
            for output, tap in reads:
                for o, number in zip(users, numbers, strict=True):
                    cell = cells[o * columns + output]
                    value = step.add(load(cell, 0, step.lanes), x, weights[number][tap])
                    store(cell, 0, step.lanes, value)

    def _rows(self, index: int) -> list[int]:
        """Return the input rows of a chunk; rows that no output of this block reads, and that
        may lie outside of the input, give way to one that is read."""
        layout = self.layout
        last = (self.block.rows - 1) * layout.stride + (layout.height - 1) * layout.dilation
        chunk = [row for row in layout.chunks[index] if row <= last]
        return chunk + chunk[-1:] * (layout.k_group - len(chunk))

    def _readers(self) -> dict[int, list[tuple[int, int]]]:
        """Return, for each input column, the (output column, kernel column) that read it."""
        shape = self.plan.shape
        reach = shape.run_strides[1] // shape.channels
        readers: dict[int, list[tuple[int, int]]] = {}
        for output in range(self.block.columns):
            for tap in range(self.layout.width):
                column = output * shape.stride[1] + tap * reach
                readers.setdefault(column, []).append((output, tap))
        return dict(sorted(readers.items()))

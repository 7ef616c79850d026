"""Depthwise convolution: vectors run over channels, a block over the columns of a row.

The input vector of a column is loaded once and serves every tap and output that reads it.
Weights are laid out ``[vector][tap][lanes]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.arguments import ELEMENT_BYTES, INPUT_DTYPE
from mpq_compile.kernels.blocking import Block
from mpq_compile.kernels.emit import load, splat, store, vector, widen
from mpq_compile.kernels.gemm_plan import GemmPlan, split_of
from mpq_compile.kernels.geometry import geometry
from mpq_compile.kernels.implicit_gemm import build
from mpq_compile.kernels.microkernel import DotStep, FloatStep
from mpq_compile.kernels.pixel_block import PixelBlock, Place
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload

# Output columns of a block: accumulators leave room for the taps of a 3×3 kernel.
COLUMNS = {16: 4, 32: 8}


class Lanewise(DotStep):
    """int32 multiply-add of channel vectors; LLVM picks the instruction."""

    def pixel(self, buffer: Any, offset: Any) -> Any:
        return self.weights(buffer, offset)


class LanewisePairs(Lanewise):
    """int16 pairs with a zero high half: exact, and one instruction instead of a slow multiply."""

    def weights(self, buffer: Any, offset: Any) -> Any:
        words = T.cast(load(buffer, offset, self.lanes), vector("int32", self.lanes))
        return T.reinterpret(vector("int16", 2 * self.lanes), words)


class Vpdpwssd(LanewisePairs):
    """AVX-512 VNNI."""

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpwssd.512", acc, x, w)


class VpmaddwdPairs(LanewisePairs):
    """AVX2."""

    def add(self, acc: Any, x: Any, w: Any) -> Any:
        return acc + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", x, w)


class LanewiseFloat(FloatStep):
    """float32 multiply-add of channel vectors."""

    def pixel(self, buffer: Any, offset: Any) -> Any:
        fmt = "bf16" if self.input_dtype == "uint16" else "fp32"
        return widen(load(buffer, offset, self.lanes), fmt, None, self.lanes)


def depthwise_step(workload: Workload, tier: Tier) -> DotStep:
    """Return the multiply-add of channel vectors that a tier offers."""
    if workload.compute == "int8":
        kinds = {"amx": Vpdpwssd, "vpdpbusd": Vpdpwssd, "vpmaddwd": VpmaddwdPairs}
        return kinds.get(tier.dot, Lanewise)(lanes=tier.lanes)
    dtype = INPUT_DTYPE[workload.compute]
    return LanewiseFloat(
        lanes=tier.lanes, input_dtype=dtype, weight_dtype=dtype, accumulator="float32"
    )


def generate(workload: Workload, tier: Tier, threads: int) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a depthwise convolution."""
    return build(plan_depthwise(workload, tier, threads), DepthwiseBlock, workload, tier)


def plan_depthwise(workload: Workload, tier: Tier, threads: int) -> GemmPlan:
    """Choose block and split of a depthwise convolution."""
    shape, step = geometry(workload), depthwise_step(workload, tier)
    parts = -(-shape.out_width // COLUMNS[tier.registers])
    block = Block(rows=1, columns=-(-shape.out_width // parts), vectors=1)
    return GemmPlan(
        shape=shape,
        step=step,
        block=block,
        split=split_of(workload, tier, block, block.rows, threads),
        run_steps=1,
        vectors=-(-shape.group_outputs // tier.lanes),
        slack=max(0, tier.lanes - shape.channels),
        copy_lanes=4 * tier.lanes // ELEMENT_BYTES[step.input_dtype],
    )


@dataclass(frozen=True, kw_only=True)
class DepthwiseBlock(PixelBlock):
    """One row of output columns × one vector of channels."""

    def _multiply(self, place: Place, channels: Sequence[Any]) -> None:
        plan, step = self.plan, self.plan.step
        lanes, (height, width) = step.lanes, plan.shape.runs
        start = T.bind(place.pixel + channels[0])
        panel = T.bind(place.vector * plan.panel_size)
        taps = [
            T.bind(step.weights(self.weights, panel + tap * lanes)) for tap in range(height * width)
        ]
        cells = self._cells(step.accumulator)
        first = splat(T.float32(0), lanes)
        if step.accumulator == "int32":
            first = T.bind(self.epilogue.compensation(channels[0]))
        for cell in cells:
            store(cell, 0, lanes, first)
        for row in range(height):
            row_start = start + row * plan.shape.run_strides[0]
            self._row(cells, row_start, taps[row * width : (row + 1) * width])
        self._spill(cells)

    def _row(self, cells: Sequence[Any], start: Any, taps: Sequence[Any]) -> None:
        """Multiply one kernel row; each input column is loaded once."""
        shape, step = self.plan.shape, self.plan.step
        reach = shape.run_strides[1] // shape.channels
        users: dict[int, list[tuple[int, int]]] = {}
        for output in range(self.block.columns):
            for tap in range(len(taps)):
                column = output * shape.stride[1] + tap * reach
                users.setdefault(column, []).append((output, tap))
        for column in sorted(users):
            x = T.bind(step.pixel(self.source, start + column * shape.channels))
            for output, tap in users[column]:
                cell = cells[output]
                value = step.add(load(cell, 0, step.lanes), x, taps[tap])
                store(cell, 0, step.lanes, value)

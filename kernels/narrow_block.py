"""The register block for weights of at most 4 bits on AVX2: sums of 16 bits, emptied in time.

``vpmaddubsw`` multiplies bytes, twice as many as ``vpmaddwd`` multiplies words, but sums pairs of
products in 16 bits, which products of 8-bit weights overflow. Products of 4-bit weights do not,
eight steps long; then the sums of a block are added to 32-bit ones in the tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.emit import load, splat, store
from mpq_compile.kernels.gemm_plan import gemm_choices, plan_gemm
from mpq_compile.kernels.geometry import NARROW_BITS
from mpq_compile.kernels.implicit_gemm import build
from mpq_compile.kernels.pixel_block import Place
from mpq_compile.kernels.register_block import RegisterBlock
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload

# Steps after which a sum of two products each can have left 16 bits.
STEPS = (2**15 - 1) // (2 * 255 * 2 ** (NARROW_BITS - 1))
# What ``generate`` may be given, the cost model's choice first.
choices = gemm_choices


def generate(workload: Workload, tier: Tier, threads: int, choice: Choice | None = None) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a workload that ``sums_narrow``."""
    return build(plan_gemm(workload, tier, threads, choice), NarrowBlock, workload, tier)


@dataclass(frozen=True, kw_only=True)
class NarrowBlock(RegisterBlock):
    """Keeps two 16-bit sums a channel in registers, and the 32-bit ones in the tile."""

    def _multiply(self, place: Place, channels: Sequence[Any]) -> None:
        plan = self.plan
        start = T.bind(place.pixel + place.group * plan.shape.group_inputs)
        panel = T.bind((place.group * plan.vectors + place.vector) * plan.panel_size)
        totals = [T.bind(self.epilogue.compensation(channel, 0)) for channel in channels]
        cells = []
        for index in range(self.block.pixels * len(channels)):
            store(self.tile, self._place(index), plan.step.lanes, totals[index % len(channels)])
            cells.append(T.alloc_buffer((plan.step.sums,), "int16"))
        outer, inner = plan.shape.runs
        with T.serial(outer) as i, T.serial(inner) as j:
            self._run(cells, start, panel, i, j)

    def _run(self, cells: Sequence[Any], start: Any, panel: Any, outer: Any, inner: Any) -> None:
        plan, step = self.plan, self.plan.step
        strides, size = plan.shape.run_strides, step.lanes * step.k_group
        source = T.bind(start + outer * strides[0] + inner * strides[1])
        index = outer * plan.shape.runs[1] + inner
        weights = T.bind(panel + index * (plan.run_steps * size))
        whole, rest = divmod(plan.run_steps, STEPS)
        if whole:
            with T.serial(whole) as k:
                at = T.bind(k * STEPS)
                self._steps(cells, source + at * step.k_group, weights + at * size, STEPS)
        if rest:
            at = whole * STEPS
            self._steps(cells, source + at * step.k_group, weights + at * size, rest)

    def _steps(self, cells: Sequence[Any], source: Any, weights: Any, steps: int) -> None:
        """Take a few steps from zero, then empty the sums into the tile."""
        step = self.plan.step
        size = step.lanes * step.k_group
        for cell in cells:
            store(cell, 0, step.sums, splat(T.int16(0), step.sums))
        with T.serial(steps) as k:
            self._step(cells, source + k * step.k_group, weights + k * size)
        for index, cell in enumerate(cells):
            total = load(self.tile, self._place(index), step.lanes)
            pairs = load(cell, 0, step.sums), splat(T.int16(1), step.sums)
            total += T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", *pairs)
            store(self.tile, self._place(index), step.lanes, total)

    def _place(self, index: int) -> Any:
        """Return where the tile has the sums of one accumulator."""
        return self.tile_base + index * self.plan.step.lanes

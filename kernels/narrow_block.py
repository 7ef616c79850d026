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
from mpq_compile.kernels.register_block import RegisterBlock
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload

# Most steps whose sums, of two products each, stay within 16 bits.
STEPS = (2**15 - 1) // (2 * 255 * 2 ** (NARROW_BITS - 1))
# What ``generate`` may be given, the cost model's choice first.
choices = gemm_choices


def generate(workload: Workload, tier: Tier, threads: int, choice: Choice | None = None) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a workload that ``sums_narrow``."""
    return build(plan_gemm(workload, tier, threads, choice), NarrowBlock, workload, tier)


@dataclass(frozen=True, kw_only=True)
class NarrowBlock(RegisterBlock):
    """Keeps two 16-bit sums a channel in registers, and the 32-bit ones in the tile."""

    def _cells(self, dtype: str) -> list[Any]:
        count = self.block.pixels * self.block.vectors
        return [T.alloc_buffer((self.plan.step.sums,), "int16") for _ in range(count)]

    def _start(self, cells: Sequence[Any], channels: Sequence[Any], group: Any = 0) -> None:
        lanes = self.plan.step.lanes
        totals = [T.bind(self.epilogue.compensation(channel, group)) for channel in channels]
        for index in range(len(cells)):
            store(self.tile, self._place(index), lanes, totals[index % len(totals)])

    def _spill(self, cells: Sequence[Any]) -> None:
        """The sums lie in the tile already."""

    def _steps(self, cells: Sequence[Any], source: Any, weights: Any, steps: int) -> None:
        step = self.plan.step
        size = step.lanes * step.k_group
        whole, rest = divmod(steps, STEPS)
        if whole:
            with T.serial(whole) as k:
                at = T.bind(k * STEPS)
                self._emptied(cells, source + at * step.k_group, weights + at * size, STEPS)
        if rest:
            at = whole * STEPS
            self._emptied(cells, source + at * step.k_group, weights + at * size, rest)

    def _emptied(self, cells: Sequence[Any], source: Any, weights: Any, steps: int) -> None:
        """Take a few steps from zero, then empty the sums into the tile."""
        step = self.plan.step
        for cell in cells:
            store(cell, 0, step.sums, splat(T.int16(0), step.sums))
        super()._steps(cells, source, weights, steps)
        for index, cell in enumerate(cells):
            total = load(self.tile, self._place(index), step.lanes)
            pairs = load(cell, 0, step.sums), splat(T.int16(1), step.sums)
            total += T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", *pairs)
            store(self.tile, self._place(index), step.lanes, total)

    def _place(self, index: int) -> Any:
        """Return where the tile has the sums of one accumulator."""
        return self.tile_base + index * self.plan.step.lanes

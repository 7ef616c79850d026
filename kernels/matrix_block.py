"""The register block on usmmla and bfmmla: pairs of pixels × pairs of channels.

An accumulator holds the sums of two pixels and two channels, so that a vector of four channels
takes two accumulators a pair of pixels. Weights are laid out as for every register block: the
first half of a step's weights are the operand of the first two channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.emit import load, permute, store
from mpq_compile.kernels.gemm_plan import gemm_choices, plan_gemm
from mpq_compile.kernels.implicit_gemm import build
from mpq_compile.kernels.register_block import RegisterBlock
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload

# Lanes of a vector of four channels that one accumulator starts from: one pair, for each pixel.
PAIRS = ((0, 1, 0, 1), (2, 3, 2, 3))
# Lanes of two accumulators that are the four channels of the first and of the second pixel.
PIXELS = ((0, 1, 4, 5), (2, 3, 6, 7))
# What ``generate`` may be given, the cost model's choice first.
choices = gemm_choices


def generate(workload: Workload, tier: Tier, threads: int, choice: Choice | None = None) -> Any:
    """Return the PrimFunc ``main(X, W, E, [R], O)`` of a workload that ``uses_matrix_products``."""
    return build(plan_gemm(workload, tier, threads, choice), MatrixBlock, workload, tier)


@dataclass(frozen=True, kw_only=True)
class MatrixBlock(RegisterBlock):
    """Keeps accumulators ordered by pair of pixels, vector and pair of channels.

    Where pixels are odd, the last one is its own partner and half of its sums are dropped.
    """

    def _cells(self, dtype: str) -> list[Any]:
        count = len(self._pixel_pairs()) * self.block.vectors * len(PAIRS)
        return [T.alloc_buffer((self.plan.step.lanes,), dtype) for _ in range(count)]

    def _start(self, cells: Sequence[Any], channels: Sequence[Any], group: Any = 0) -> None:
        if self.plan.step.accumulator == "float32":
            super()._start(cells, channels, group)
            return
        values = []
        for channel in channels:
            compensation = T.bind(self.epilogue.compensation(channel, group))
            values += [T.bind(permute([compensation], pair)) for pair in PAIRS]
        for index, cell in enumerate(cells):
            store(cell, 0, self.plan.step.lanes, values[index % len(values)])

    def _step(self, cells: Sequence[Any], source: Any, weights: Any) -> None:
        step, panel, operand = self.plan.step, self.plan.panel_size, 2 * self.plan.step.k_group
        columns = [
            T.bind(step.weights(self.weights, weights + v * panel + pair * operand))
            for v in range(self.block.vectors)
            for pair in range(len(PAIRS))
        ]
        for index, moves in enumerate(self._pixel_pairs()):
            halves = [step.pixel(self.source, source + move) for move in moves]
            x = T.bind(permute(halves, range(operand)))
            for column, w in enumerate(columns):
                cell = cells[index * len(columns) + column]
                store(cell, 0, step.lanes, step.add(load(cell, 0, step.lanes), x, w))

    def _spill(self, cells: Sequence[Any]) -> None:
        lanes, vectors = self.plan.step.lanes, self.block.vectors
        for pixel in range(self.block.pixels):
            pair, which = divmod(pixel, 2)
            for v in range(vectors):
                first = (pair * vectors + v) * len(PAIRS)
                sums = [load(cell, 0, lanes) for cell in cells[first : first + len(PAIRS)]]
                at = self.tile_base + (pixel * vectors + v) * lanes
                store(self.tile, at, lanes, permute(sums, PIXELS[which]))

    def _pixel_pairs(self) -> list[tuple[int, int]]:
        """Return the distances of both pixels of each pair from the block's first."""
        moves = self._moves()
        return list(zip(moves[::2], (*moves[1::2], moves[-1]), strict=False))

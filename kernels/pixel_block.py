"""What all blocks of an implicit GEMM share: they leave sums in a tile and finish from there.

The sums of a block are spilled to a small tile, over which a loop runs the epilogue pixel by
pixel: unrolled epilogues would make kernels of 50 KB that take a second to compile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.blocking import Block
from mpq_compile.kernels.emit import load, store
from mpq_compile.kernels.epilogue import Epilogue
from mpq_compile.kernels.gemm_plan import GemmPlan


@dataclass(frozen=True, kw_only=True)
class PixelBlock(ABC):
    """Computes ``block.pixels`` output pixels × ``block.vectors`` vectors of channels.

    Args:
        block: Size of this block: the plan's, or a tail.
        source: Input, or the scratch that holds it padded.
        tile: Scratch of ``plan.tile_size`` sums at ``tile_base``.
    """

    plan: GemmPlan
    block: Block
    source: Any
    weights: Any
    epilogue: Epilogue
    tile: Any
    tile_base: Any

    def emit(self, pixel: Any, output: Any, group: Any, vector: Any) -> None:
        """Emit the block whose first input element is ``pixel`` and first pixel ``output``.

        ``group`` is the channel group, ``vector`` the first vector of channels in it.
        """
        channels = [T.bind(self._channel(group, vector + v)) for v in range(self.block.vectors)]
        self._multiply(pixel, group, vector, channels)
        self._finish(output, channels)

    @abstractmethod
    def _multiply(self, pixel: Any, group: Any, vector: Any, channels: Sequence[Any]) -> None:
        """Leave the sums in the tile: [pixel][vector][lanes]."""

    def _channel(self, group: Any, vector: Any) -> Any:
        """Return the first output channel of a vector; the last one moves back to fit."""
        outputs, lanes = self.plan.shape.group_outputs, self.plan.step.lanes
        start = vector * lanes
        if outputs % lanes and outputs > lanes:
            start = T.min(start, outputs - lanes)
        return group * outputs + start

    def _cells(self, dtype: str) -> list[Any]:
        """Allocate one small buffer for each accumulator; LLVM keeps them in registers."""
        count = self.block.pixels * self.block.vectors
        return [T.alloc_buffer((self.plan.step.lanes,), dtype) for _ in range(count)]

    def _spill(self, cells: Sequence[Any]) -> None:
        """Store accumulators, ordered by pixel and vector, to the tile."""
        lanes = self.plan.step.lanes
        for index, cell in enumerate(cells):
            store(self.tile, self.tile_base + index * lanes, lanes, load(cell, 0, lanes))

    def _finish(self, output: Any, channels: Sequence[Any]) -> None:
        """Run the epilogue over the tile; a block's pixels are consecutive outputs."""
        lanes, shape = self.plan.step.lanes, self.plan.shape
        with T.serial(self.block.pixels) as i:
            at = T.bind(self.tile_base + i * (len(channels) * lanes))
            out = T.bind((output + i) * shape.out_channels)
            for v, channel in enumerate(channels):
                value = load(self.tile, at + v * lanes, lanes)
                if shape.scale_groups == 1:
                    value = self.epilogue.scaled(value, channel) + self.epilogue.bias(channel)
                self.epilogue.finish(value, out + channel)

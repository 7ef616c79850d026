"""What all blocks of an implicit GEMM share: they leave sums in a tile and finish from there.

The sums of a block are spilled to a small tile, over which a loop runs the epilogue pixel by
pixel: unrolled epilogues would make kernels of 50 KB that take a second to compile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.blocking import Block
from mpq_compile.kernels.emit import load, store
from mpq_compile.kernels.epilogue import Epilogue
from mpq_compile.kernels.gemm_plan import GemmPlan

# Finishes a pixel of a block, given its index there and its place in the output.
Finish = Callable[[Any, Any], None]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a block lies.

    Args:
        pixel: Offset of its first input element.
        output: First output pixel of its line.
        left: Pixels between that and the block's first.
        group: Channel group.
        vector: First vector of channels in the group.
        turn: Blocks of the same channels that the task multiplied before.
        following: Offset of the weights that the task multiplies next, its last ones after the
            last; None where they are the same from block to block, or change with each.
    """

    pixel: Any
    output: Any
    left: Any
    group: Any
    vector: Any
    turn: Any = 0
    following: Any = None


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

    @contextmanager
    def task(self) -> Iterator[None]:
        """Surround the blocks of one task; nothing to prepare here."""
        yield

    def prepare(self) -> None:
        """Prepare for blocks of this size, once before a row of them; nothing to do here."""
        return

    def costs_whole(self, whole: Block, columns: int) -> bool:
        """Tell whether ``columns`` columns take as long as those of a ``whole`` block."""
        return False

    def emit(self, place: Place) -> None:
        """Emit the block at ``place``."""
        channels = self._channels(place)
        self._multiply(place, channels)
        self._finish(place.output, place.left, channels)

    def _channels(self, place: Place) -> list[Any]:
        """Return the first output channel of each vector."""
        return [
            T.bind(self._channel(place.group, place.vector + v)) for v in range(self.block.vectors)
        ]

    @abstractmethod
    def _multiply(self, place: Place, channels: Sequence[Any]) -> None:
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

    def _finish(self, output: Any, left: Any, channels: Sequence[Any]) -> None:
        """Run the epilogue over the tile, pixel by pixel; (output, left) as in :class:`Place`."""
        finish = self._finisher(channels)
        if self.plan.flat_rows:
            with T.serial(self.block.pixels) as i:
                self._finish_at(i, output, left, finish)
            return
        rows, columns = self._runs()
        with T.serial(rows) as row, T.serial(columns) as column:
            pixel = output + row * self.plan.shape.out_width + left + column
            finish(row * columns + column, pixel)

    def _finisher(self, channels: Sequence[Any]) -> Finish:
        """Read what all pixels share into variables; return what finishes one of them."""
        epilogue = self.epilogue.hoisted()
        factors = epilogue.factors(channels)
        return partial(self._finish_pixel, epilogue=epilogue, channels=channels, factors=factors)

    def _finish_at(self, index: Any, output: Any, left: Any, finish: Finish) -> None:
        """Finish pixel ``index`` of the block, unless its window straddles two rows."""
        shape = self.plan.shape
        if not self.plan.flat_rows:
            rows, columns = self._runs()
            row, column = (0, index) if rows == 1 else _divided(index, columns)
            finish(index, output + row * shape.out_width + left + column)
            return
        row, column = _divided(left + index, shape.padded_width)
        with T.If(column < shape.out_width), T.Then():
            finish(index, output + row * shape.out_width + column)

    def _runs(self) -> tuple[int, int]:
        """Return the runs of output pixels that follow each other, and the pixels of one."""
        block = self.block
        whole = block.rows == 1 or block.columns == self.plan.shape.out_width
        return (1, block.pixels) if whole else (block.rows, block.columns)

    def _finish_pixel(
        self,
        index: Any,
        output: Any,
        *,
        epilogue: Epilogue,
        channels: Sequence[Any],
        factors: Sequence[tuple[Any, Any]],
    ) -> None:
        """Finish one pixel."""
        lanes = self.plan.step.lanes
        at = T.bind(self.tile_base + index * (len(channels) * lanes))
        residual = T.bind(output * self.plan.shape.out_channels)
        out = T.bind(epilogue.place(output) * self.plan.shape.out_channels)
        for v, channel in enumerate(channels):
            value = epilogue.total(load(self.tile, at + v * lanes, lanes), factors[v], output)
            epilogue.finish(value, out + channel, residual + channel)


def _divided(index: Any, size: int) -> tuple[Any, Any]:
    """Return quotient and remainder of an index."""
    index = T.bind(index)
    return T.bind(T.floordiv(index, size)), T.bind(T.floormod(index, size))

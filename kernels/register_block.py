"""One register block of the implicit GEMM: start, multiply, spill, finish.

Each step of k loads one weight vector per column of the block and broadcasts ``k_group`` input
elements per pixel. The sums are spilled to a small tile, from which a loop over the pixels runs
the epilogue: unrolled epilogues would make kernels of 50 KB that take a second to compile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.blocking import Block
from mpq_compile.kernels.emit import load, splat, store
from mpq_compile.kernels.epilogue import Epilogue
from mpq_compile.kernels.geometry import Geometry
from mpq_compile.kernels.microkernel import DotStep


@dataclass(frozen=True, kw_only=True)
class RegisterBlock:
    """Emits blocks of ``block.pixels`` × ``block.vectors`` accumulators.

    Args:
        run_steps: Dot product steps in one run.
        vectors: Vectors of output channels in one group.
        source: Input, or the scratch that holds it padded.
        tile: Scratch for the sums, at ``tile_base``.
    """

    shape: Geometry
    step: DotStep
    block: Block
    run_steps: int
    vectors: int
    source: Any
    weights: Any
    epilogue: Epilogue
    tile: Any
    tile_base: Any

    def emit(self, pixel: Any, output: Any, group: Any, vector: Any) -> None:
        """Emit the block whose first input element is ``pixel`` and first pixel ``output``.

        ``group`` is the channel group, ``vector`` the first vector of channels in it.
        """
        start = T.bind(pixel + group * self.shape.group_inputs)
        panel = T.bind((group * self.vectors + vector) * self._panel_size())
        channels = [T.bind(self._channel(group, vector + v)) for v in range(self._width())]
        if self.shape.scale_groups > 1:
            sums = self._multiply_groups(start, panel, channels)
        else:
            sums = self._multiply(start, panel, channels)
        for index, cell in enumerate(sums):
            at = self.tile_base + index * self.step.lanes
            store(self.tile, at, self.step.lanes, load(cell, 0, self.step.lanes))
        self._finish(output, channels)

    def _width(self) -> int:
        return self.block.vectors

    def _panel_size(self) -> int:
        """Weights of one vector of channels."""
        outer, inner = self.shape.runs
        return outer * inner * self.run_steps * self.step.lanes * self.step.k_group

    def _channel(self, group: Any, vector: Any) -> Any:
        """Return the first output channel of a vector; the last one moves back to fit."""
        outputs, lanes = self.shape.group_outputs, self.step.lanes
        start = vector * lanes
        if outputs % lanes and outputs > lanes:
            start = T.min(start, outputs - lanes)
        return group * outputs + start

    def _cells(self, dtype: str) -> list[Any]:
        """Allocate one small buffer for each accumulator; LLVM keeps them in registers."""
        count = self.block.pixels * self._width()
        return [T.alloc_buffer((self.step.lanes,), dtype) for _ in range(count)]

    def _start(self, cells: Sequence[Any], channels: Sequence[Any], group: Any = 0) -> None:
        """Set accumulators to the compensation, or to zero."""
        lanes = self.step.lanes
        if self.step.accumulator == "int32":
            values = [T.bind(self.epilogue.compensation(c, group)) for c in channels]
        else:
            values = [splat(T.float32(0), lanes)] * len(channels)
        for index, cell in enumerate(cells):
            store(cell, 0, lanes, values[index % len(channels)])

    def _multiply(self, start: Any, panel: Any, channels: Sequence[Any]) -> list[Any]:
        cells = self._cells(self.step.accumulator)
        self._start(cells, channels)
        outer, inner = self.shape.runs
        with T.serial(outer) as i, T.serial(inner) as j:
            self._run(cells, start, panel, i, j)
        return cells

    def _multiply_groups(self, start: Any, panel: Any, channels: Sequence[Any]) -> list[Any]:
        """Multiply one weight group after the other; sums are float32, biases first."""
        lanes = self.step.lanes
        cells, sums = self._cells("int32"), self._cells("float32")
        for index, cell in enumerate(sums):
            store(cell, 0, lanes, self.epilogue.bias(channels[index % len(channels)]))
        with T.serial(self.shape.scale_groups) as group:
            self._start(cells, channels, group)
            self._run(cells, start, panel, group, 0)
            for index, (cell, total) in enumerate(zip(cells, sums, strict=True)):
                channel = channels[index % len(channels)]
                product = self.epilogue.scaled(load(cell, 0, lanes), channel, group)
                store(total, 0, lanes, load(total, 0, lanes) + product)
        return sums

    def _run(self, cells: Sequence[Any], start: Any, panel: Any, outer: Any, inner: Any) -> None:
        """Multiply one run of contiguous input."""
        strides, size = self.shape.run_strides, self.step.lanes * self.step.k_group
        source = T.bind(start + outer * strides[0] + inner * strides[1])
        index = outer * self.shape.runs[1] + inner
        weights = T.bind(panel + index * (self.run_steps * size))
        with T.serial(self.run_steps) as k:
            self._step(cells, source + k * self.step.k_group, weights + k * size)

    def _step(self, cells: Sequence[Any], source: Any, weights: Any) -> None:
        """Multiply ``k_group`` inputs of every pixel with every vector of weights."""
        panel, lanes = self._panel_size(), self.step.lanes
        columns = [
            T.bind(self.step.weights(self.weights, weights + v * panel))
            for v in range(self._width())
        ]
        for index, move in enumerate(self._moves()):
            x = T.bind(self.step.pixel(self.source, source + move))
            for v, w in enumerate(columns):
                cell = cells[index * len(columns) + v]
                store(cell, 0, lanes, self.step.add(load(cell, 0, lanes), x, w))

    def _moves(self) -> list[int]:
        """Return the distance of each pixel's input from the first pixel's."""
        down = self.shape.stride[0] * self.shape.row_size
        right = self.shape.stride[1] * self.shape.channels
        return [
            row * down + column * right
            for row in range(self.block.rows)
            for column in range(self.block.columns)
        ]

    def _finish(self, output: Any, channels: Sequence[Any]) -> None:
        """Run the epilogue over the spilled sums; a block's pixels are consecutive outputs."""
        lanes, width = self.step.lanes, self._width()
        with T.serial(self.block.pixels) as i:
            at = T.bind(self.tile_base + i * (width * lanes))
            out = T.bind((output + i) * self.shape.out_channels)
            for v, channel in enumerate(channels):
                value = load(self.tile, at + v * lanes, lanes)
                if self.shape.scale_groups == 1:
                    value = self.epilogue.scaled(value, channel) + self.epilogue.bias(channel)
                self.epilogue.finish(value, out + channel)

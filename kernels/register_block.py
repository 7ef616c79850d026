"""The register block of the implicit GEMM: broadcast input × vectors of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import load, splat, store
from mpq_compile.kernels.pixel_block import PixelBlock, Place


@dataclass(frozen=True, kw_only=True)
class RegisterBlock(PixelBlock):
    """Keeps one accumulator per pixel and vector in registers.

    Each step of k loads one weight vector per column of the block and broadcasts ``k_group``
    input elements per pixel.
    """

    def _multiply(self, place: Place, channels: Sequence[Any]) -> None:
        plan = self.plan
        start = T.bind(place.pixel + place.group * plan.shape.group_inputs)
        panel = T.bind((place.group * plan.vectors + place.vector) * plan.panel_size)
        if plan.shape.scale_groups > 1:
            self._spill(self._multiply_groups(start, panel, channels))
            return
        cells = self._cells(plan.step.accumulator)
        self._start(cells, channels)
        outer, inner = plan.shape.runs
        with T.serial(outer) as i, T.serial(inner) as j:
            self._run(cells, start, panel, i, j)
        self._spill(cells)

    def _multiply_groups(self, start: Any, panel: Any, channels: Sequence[Any]) -> list[Any]:
        """Multiply one weight group after the other; sums are float32, biases first."""
        lanes = self.plan.step.lanes
        cells, sums = self._cells(self.plan.step.accumulator), self._cells("float32")
        for index, cell in enumerate(sums):
            store(cell, 0, lanes, self.epilogue.first(channels[index % len(channels)]))
        with T.serial(self.plan.shape.scale_groups) as group:
            self._start(cells, channels, group)
            self._run(cells, start, panel, group, 0)
            for index, (cell, total) in enumerate(zip(cells, sums, strict=True)):
                channel = channels[index % len(channels)]
                scale = self.epilogue.scale(channel, group)
                product = self.epilogue.scaled(load(cell, 0, lanes), scale)
                store(total, 0, lanes, load(total, 0, lanes) + product)
        return sums

    def _start(self, cells: Sequence[Any], channels: Sequence[Any], group: Any = 0) -> None:
        """Set accumulators to the compensation, or to zero."""
        lanes = self.plan.step.lanes
        if self.plan.step.accumulator == "int32":
            values = [T.bind(self.epilogue.compensation(c, group)) for c in channels]
        else:
            values = [splat(T.float32(0), lanes)] * len(channels)
        for index, cell in enumerate(cells):
            store(cell, 0, lanes, values[index % len(channels)])

    def _run(self, cells: Sequence[Any], start: Any, panel: Any, outer: Any, inner: Any) -> None:
        """Multiply one run of contiguous input."""
        plan, step = self.plan, self.plan.step
        strides, size = plan.shape.run_strides, step.lanes * step.k_group
        source = T.bind(start + outer * strides[0] + inner * strides[1])
        index = outer * plan.shape.runs[1] + inner
        weights = T.bind(panel + index * (plan.run_steps * size))
        self._steps(cells, source, weights, plan.run_steps)

    def _steps(self, cells: Sequence[Any], source: Any, weights: Any, steps: int) -> None:
        """Take ``steps`` steps from there."""
        step = self.plan.step
        with T.serial(steps) as k:
            at = k * (step.lanes * step.k_group)
            self._step(cells, source + k * step.k_group, weights + at)

    def _step(self, cells: Sequence[Any], source: Any, weights: Any) -> None:
        """Multiply ``k_group`` inputs of every pixel with every vector of weights."""
        step, panel = self.plan.step, self.plan.panel_size
        columns = [
            T.bind(step.weights(self.weights, weights + v * panel))
            for v in range(self.block.vectors)
        ]
        for index, move in enumerate(self._moves()):
            x = T.bind(step.pixel(self.source, source + move))
            for v, w in enumerate(columns):
                cell = cells[index * len(columns) + v]
                store(cell, 0, step.sums, step.add(load(cell, 0, step.sums), x, w))

    def _moves(self) -> list[int]:
        """Return the distance of each pixel's input from the first pixel's."""
        shape = self.plan.shape
        down, right = shape.stride[0] * shape.row_size, shape.stride[1] * shape.channels
        return [
            row * down + column * right
            for row in range(self.block.rows)
            for column in range(self.block.columns)
        ]

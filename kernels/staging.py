"""Copies of the input that hold its padding, one for each task: no barrier is needed.

A task copies the input rows under its own output rows, so that its scratch stays in its cache.
Padding cells hold the zero point, which the compensation of the record expects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import Convert, copy_span, fill_short, fill_span
from mpq_compile.kernels.geometry import Geometry

# Scratch of a task starts at a multiple of this many elements.
ALIGNMENT = 64
# At least so much lies between the scratch of two tasks. A core that reads its own in order
# fetches what follows ahead, up to the end of a page, and would take from another core what that
# one writes.
PAGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Staging:
    """Scratch rows of one task.

    Args:
        rows: Padded input rows a task holds.
        slack: Elements that the last dot product step may read past the end of a row.
        clear_slack: True where those must be finite (float): zero weights do not hide a NaN.
        lanes: Elements copied at once.
        convert: Returns (stored input, lanes) as the scratch holds it.
    """

    shape: Geometry
    rows: int
    slack: int
    clear_slack: bool
    lanes: int
    convert: Convert

    @property
    def size(self) -> int:
        """Elements from one task's scratch to the next task's, which are of a byte or more."""
        used = self.rows * self.shape.row_size + self.slack + PAGE_BYTES
        return -(-used // ALIGNMENT) * ALIGNMENT

    def emit(self, scratch: Any, base: Any, source: Any, first_row: Any, blank: Any) -> None:
        """Fill the scratch at ``base`` with padded rows from ``first_row``.

        ``blank`` is the value of padding cells. Rows count through all images of the batch.
        """
        shape = self.shape
        with T.serial(self.rows) as r:
            row = T.bind(first_row + r)
            with T.If(row < shape.batch * shape.padded_height), T.Then():
                to = T.bind(base + r * shape.row_size)
                self._row(scratch, to, source, row, blank)

    def _row(self, scratch: Any, to: Any, source: Any, row: Any, blank: Any) -> None:
        shape = self.shape
        image = T.floordiv(row, shape.padded_height)
        down = T.bind(T.floormod(row, shape.padded_height) - shape.padding[0])
        step = shape.input_dilation[0]
        at = (image * shape.height + T.floordiv(down, step)) * shape.width * shape.channels
        if shape.padded_height == shape.height and shape.padding[0] == 0:
            self._inside(scratch, to, source, at, blank)
        else:
            inside = T.And(down >= 0, down <= (shape.height - 1) * step)
            if step > 1:
                inside = T.And(inside, T.floormod(down, step) == 0)
            with T.If(inside):
                with T.Then():
                    self._inside(scratch, to, source, at, blank)
                with T.Else():
                    fill_span(scratch, to, blank, shape.row_size, self.lanes)
        if self.clear_slack:
            fill_short(scratch, to + shape.row_size, blank, self.slack)

    def _inside(self, scratch: Any, to: Any, source: Any, at: Any, blank: Any) -> None:
        """Copy one input row between its left and right padding."""
        shape, channels, left = self.shape, self.shape.channels, self.shape.padding[1]
        step = shape.input_dilation[1]
        if step > 1:
            fill_span(scratch, to, blank, shape.row_size, self.lanes)
            self._spread(scratch, to, source, at)
            return
        before, cropped = max(left, 0), max(-left, 0)
        copied = min(shape.width - cropped, shape.padded_width - before)
        after = shape.padded_width - before - copied
        fill_span(scratch, to, blank, before * channels, self.lanes)
        start = to + before * channels
        self._copy(scratch, start, source, at + cropped * channels, copied * channels)
        fill_span(scratch, start + copied * channels, blank, after * channels, self.lanes)

    def _spread(self, scratch: Any, to: Any, source: Any, at: Any) -> None:
        shape, channels, left = self.shape, self.shape.channels, self.shape.padding[1]
        step = shape.input_dilation[1]
        inside = [x for x in range(shape.width) if 0 <= x * step + left < shape.padded_width]
        if not inside:
            return
        with T.serial(len(inside)) as i:
            x = T.bind(i + inside[0])
            place = to + (x * step + left) * channels
            self._copy(scratch, place, source, at + x * channels, channels)

    def _copy(self, scratch: Any, to: Any, source: Any, at: Any, count: int) -> None:
        copy_span(scratch, to, source, at, count, self.lanes, self.convert)

"""Outputs with a border: what the next convolution reads as its padding.

A kernel that stores into the middle of a larger image, and the zero point around it, saves the
next one a copy of its input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import fill_span, scalar
from mpq_compile.kernels.workload import ConvWorkload, Workload


@dataclass(frozen=True, kw_only=True)
class Border:
    """The image around an output.

    Args:
        batch, height, width, channels: Size of the output.
        top, left, bottom, right: Pixels around it.
    """

    batch: int
    height: int
    width: int
    channels: int
    top: int
    left: int
    bottom: int
    right: int

    @property
    def rows(self) -> int:
        """Rows of one image with its border."""
        return self.height + self.top + self.bottom

    @property
    def columns(self) -> int:
        """Columns of an image with its border."""
        return self.width + self.left + self.right

    def place(self, pixel: Any) -> Any:
        """Return where an output pixel, counted without the border, is stored."""
        line = T.bind(T.floordiv(pixel, self.width))
        row = line + self.top
        if self.batch > 1:
            row = row + T.floordiv(line, self.height) * (self.top + self.bottom)
        return row * self.columns + self.left + pixel - line * self.width

    def fill(self, output: Any, value: Any, task: Any, tasks: int, lanes: int) -> None:
        """Store ``value`` into the border of the rows of one task."""
        rows = self.batch * self.rows
        share = -(-rows // tasks)
        size = self.columns * self.channels
        with T.serial(share) as index:
            row = T.bind(task * share + index)
            with T.If(row < rows), T.Then():
                start, line = T.bind(row * size), T.bind(T.floormod(row, self.rows))
                with T.If(T.And(line >= self.top, line < self.top + self.height)):
                    with T.Then():
                        fill_span(output, start, value, self.left * self.channels, lanes)
                        end = start + (self.left + self.width) * self.channels
                        fill_span(output, end, value, self.right * self.channels, lanes)
                    with T.Else():
                        fill_span(output, start, value, size, lanes)


def border_of(workload: Workload) -> Border | None:
    """Return the border of a workload's output, if there is one."""
    if not isinstance(workload, ConvWorkload) or not any(workload.border):
        return None
    top, left, bottom, right = workload.border
    return Border(
        batch=workload.batch,
        height=workload.out_height,
        width=workload.out_width,
        channels=workload.out_channels,
        top=top,
        left=left,
        bottom=bottom,
        right=right,
    )


def border_value(record: Any, output: Any) -> Any:
    """Return what stands for zero in the output: its zero point, or 0 in float."""
    dtype = str(output.dtype)
    if dtype == "uint8":
        return T.bind(T.cast(scalar(record, "zp_out"), dtype))
    return T.float32(0) if dtype == "float32" else T.uint16(0)

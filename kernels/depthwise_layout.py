"""Depthwise weights, ordered for instructions that add several rows of a window at once.

A dot product adds ``k_group`` products in each lane. A depthwise convolution has no input channels
to fill them with, so a lane takes the same channel and column of ``k_group`` input rows: a *chunk*.
A block of several output rows shares its chunks; each output row multiplies a chunk with its own
*pattern* of kernel rows, zero where a row is not under its window. No tvm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpq_compile.kernels.geometry import vector_starts
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import ConvWorkload

# A kernel row for each input row of a chunk; None for a zero.
Pattern = tuple[int | None, ...]

# Instructions that load rows of a chunk and order them by channel.
_CHUNK_COST = {1: 1, 2: 3, 4: 6}
# Output rows of a block that are tried, and registers that its columns need at least.
_ROWS = (1, 2, 3, 4)
_COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class DepthwiseLayout:
    """Chunks and patterns of a block of ``rows`` output rows.

    Args:
        rows: Output rows of a block.
        height, width: Size of the kernel.
        stride, dilation: Vertical ones.
        k_group: Input rows that one dot product takes.
        lanes: Channels of a vector.
        channels: Channels of the workload.
    """

    rows: int
    height: int
    width: int
    stride: int
    dilation: int
    k_group: int
    lanes: int
    channels: int

    @cached_property
    def inputs(self) -> list[int]:
        """Input rows under the block's windows, counted from the first."""
        return sorted({self._row(o, k) for o in range(self.rows) for k in range(self.height)})

    @cached_property
    def chunks(self) -> list[list[int]]:
        """The input rows, ``k_group`` at a time."""
        step = self.k_group
        return [self.inputs[i : i + step] for i in range(0, len(self.inputs), step)]

    @cached_property
    def met(self) -> Mapping[tuple[int, int], Pattern]:
        """(output row, chunk) → what the output row multiplies the chunk with, where they meet."""
        found: dict[tuple[int, int], Pattern] = {}
        for output in range(self.rows):
            taps = {self._row(output, k): k for k in range(self.height)}
            for index, chunk in enumerate(self.chunks):
                if not taps.keys().isdisjoint(chunk):
                    missing = [None] * (self.k_group - len(chunk))
                    found[output, index] = (*[taps.get(row) for row in chunk], *missing)
        return found

    @cached_property
    def patterns(self) -> Sequence[Pattern]:
        """Distinct patterns, in the order in which the weights hold them."""
        return list(dict.fromkeys(self.met.values()))

    @property
    def vector_size(self) -> int:
        """Weights of one vector of channels."""
        return len(self.patterns) * self.width * self.lanes * self.k_group

    @property
    def size(self) -> int:
        """Weights of all channels."""
        return len(vector_starts(self.channels, self.lanes)) * self.vector_size

    @property
    def cost(self) -> float:
        """Instructions for one output column and row."""
        loads = len(self.chunks) * _CHUNK_COST[self.k_group] * self.stride
        return (loads + len(self.met) * self.width) / self.rows

    @property
    def registers(self) -> int:
        """Vector registers of the smallest block that is worth having."""
        return len(self.patterns) * self.width + _COLUMNS * self.rows + 3

    def _row(self, output: int, tap: int) -> int:
        return output * self.stride + tap * self.dilation


def depthwise_layout(workload: ConvWorkload, tier: Tier) -> DepthwiseLayout:
    """Return the layout with the fewest instructions that fits into the registers."""
    step = rows_at_once(workload, tier)
    # A zero weight does not hide an infinity of a row that belongs to another output row.
    most = 1 if workload.compute != "int8" and step > 1 else workload.out_height
    layouts = [
        DepthwiseLayout(
            rows=rows,
            height=workload.kernel[0],
            width=workload.kernel[1],
            stride=workload.stride[0],
            dilation=workload.dilation[0],
            k_group=step,
            lanes=tier.lanes,
            channels=workload.out_channels,
        )
        for rows in _ROWS
        if rows <= most
    ]
    fitting = [layout for layout in layouts if layout.registers <= tier.registers]
    return min(fitting or layouts[:1], key=lambda layout: layout.cost)


def rows_at_once(workload: ConvWorkload, tier: Tier) -> int:
    """Return the input rows that one multiply-add of a tier takes."""
    if workload.compute == "int8":
        return {"amx": 4, "vpdpbusd": 4, "vpmaddwd": 2}.get(tier.dot, 1)
    return 2 if workload.compute == "bf16" and tier.bf16_dot else 1


def pack_depthwise(weight: np.ndarray, layout: DepthwiseLayout) -> np.ndarray:
    """Return weights [C, 1, KH, KW] flat, as [vector][pattern][column][lanes][k_group]."""
    channels, lanes = layout.channels, layout.lanes
    rows = np.zeros((max(channels, lanes), layout.height + 1, layout.width), weight.dtype)
    rows[:channels, :-1] = weight[:, 0]
    # The row past the kernel is zero: what None stands for.
    order = [[layout.height if t is None else t for t in p] for p in layout.patterns]
    starts = np.array(vector_starts(channels, lanes))
    vectors = rows[starts[:, None] + np.arange(lanes)][:, :, np.array(order)]
    return np.ascontiguousarray(vectors.transpose(0, 2, 4, 1, 3)).reshape(-1)

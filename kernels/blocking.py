"""Register blocks and the split over threads, chosen by a small cost model. No tvm, no NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import gcd

from mpq_compile.kernels.geometry import Geometry

# Multiply-adds below which a fork (about 1 µs) costs more than it gains, for each thread.
SERIAL_MACS = 50_000
# Dot products in flight that hide the latency of one.
LATENCY = 8
BLOCK_CYCLES = 24
# Weights of a block that exceed this stream from L2, at so many cycles a vector.
L1_BYTES = 16 * 1024
STREAM_CYCLES = 2
# Inputs a multiple of a page apart fall into one set of the L1 cache, which holds so many lines.
PAGE = 4096
L1_WAYS = 6


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Instructions of one step of a micro-kernel.

    Args:
        dot: Per accumulator.
        pixel: To broadcast one pixel's input.
        weight: To load one vector of weights.
        spare: Registers beyond accumulators and one weight vector per column.
        pixels: Pixels that are multiplied together: a block pays for whole multiples.
    """

    dot: float = 1
    pixel: float = 1
    weight: float = 1
    spare: int = 1
    pixels: int = 1


@dataclass(frozen=True, kw_only=True)
class Block:
    """Output pixels (rows × columns of the image) and channel vectors that registers hold."""

    rows: int
    columns: int
    vectors: int

    @property
    def pixels(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class Split:
    """Tasks over channel blocks and over row blocks; ``rows_outer`` is the order inside one."""

    channels: int
    rows: int
    rows_outer: bool

    @property
    def tasks(self) -> int:
        return self.channels * self.rows


def choose_block(
    shape: Geometry,
    vectors: int,
    registers: int,
    cost: StepCost,
    panel_bytes: int,
    element_bytes: int,
) -> Block:
    """Return the register block with the least modelled time.

    ``vectors`` is those of one group of channels, ``panel_bytes`` the weights of one vector and
    ``element_bytes`` the size of an input element.
    """
    best, best_time = Block(rows=1, columns=1, vectors=1), float("inf")
    for block in _blocks(shape, vectors, registers, cost):
        time = _block_time(block, shape, vectors, cost, panel_bytes, element_bytes)
        if time < best_time:
            best, best_time = block, time
    return best


def _blocks(shape: Geometry, vectors: int, registers: int, cost: StepCost) -> list[Block]:
    """A block spans several rows only where it spans the whole width: one tail at a time."""
    fits = []
    for width in range(1, min(vectors, 8) + 1):
        limit = (registers - width - cost.spare) // width // cost.pixels * cost.pixels
        columns = [(1, c) for c in range(1, min(limit, shape.out_width) + 1)]
        rows = [
            (r, shape.out_width)
            for r in range(2, min(limit // shape.out_width, shape.out_height) + 1)
        ]
        fits += [Block(rows=r, columns=c, vectors=width) for r, c in columns + rows]
    return fits


def _block_time(
    block: Block,
    shape: Geometry,
    vectors: int,
    cost: StepCost,
    panel_bytes: int,
    element_bytes: int,
) -> float:
    """Return modelled cycles per step of k, summed over all blocks of one image and group."""
    total = 0.0
    spans = product(
        _parts(shape.out_height, block.rows),
        _parts(shape.out_width, block.columns),
        _parts(vectors, block.vectors),
    )
    apart = pixel_bytes(shape, element_bytes)
    steps = max(1, shape.run // 4 * shape.runs[0] * shape.runs[1])
    for (rows, n_rows), (columns, n_columns), (width, n_width) in spans:
        pixels = -(-rows * columns // cost.pixels) * cost.pixels
        loads = pixels * cost.pixel + width * cost.weight
        dots = pixels * width * cost.dot
        time = max(dots, loads, LATENCY) + 0.1 * loads + BLOCK_CYCLES / steps
        if width * panel_bytes > L1_BYTES:
            time += width * STREAM_CYCLES
        if rows * columns * gcd(apart, PAGE) > L1_WAYS * PAGE:
            time += pixels
        total += time * n_rows * n_columns * n_width
    return total


def pixel_bytes(shape: Geometry, element_bytes: int) -> int:
    """Return the bytes between the inputs of two neighbouring pixels of a block."""
    if shape.out_width == 1:
        return shape.stride[0] * shape.row_size * element_bytes
    return shape.stride[1] * shape.channels * element_bytes


def _parts(extent: int, size: int) -> list[tuple[int, int]]:
    """Return (size, count) of the whole parts and of the remainder."""
    parts = [(size, extent // size), (extent % size, 1)]
    return [(length, count) for length, count in parts if length and count]


def choose_split(
    *, macs: int, channel_blocks: int, row_blocks: int, input_bytes: int, weight_bytes: int,
    threads: int,
) -> Split:  # fmt: skip
    """Return the split over threads with the least work in its largest task."""
    usable = min(threads, max(1, macs // SERIAL_MACS))
    best, best_cost = (1, 1), float("inf")
    for channels in range(1, usable + 1):
        rows = usable // channels
        work = -(-channel_blocks // channels) * -(-row_blocks // rows)
        share = work / (channel_blocks * row_blocks)
        traffic = input_bytes / rows + weight_bytes / channels
        cost = macs * share + 4 * traffic
        if cost < best_cost:
            best, best_cost = (channels, rows), cost
    channels, rows = min(best[0], channel_blocks), min(best[1], row_blocks)
    # Blocks of whichever operand is larger stay outside, so that it is read once.
    rows_outer = input_bytes / rows > max(512 * 1024, weight_bytes / channels)
    return Split(channels=channels, rows=rows, rows_outer=rows_outer)

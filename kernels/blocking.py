"""Register blocks and the split over threads, chosen by a small cost model. No tvm, no NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from math import gcd, log2
from typing import TypeVar

from mpq_compile.kernels.geometry import Geometry

T = TypeVar("T")

# Multiply-adds below which a fork (about 1 µs) costs more than it gains, for each thread.
SERIAL_MACS = 50_000
# Dot products in flight that hide the latency of one.
LATENCY = 8
BLOCK_CYCLES = 24
# Weights of a block that exceed this stream from L2, at so many bytes a cycle.
L1_BYTES = 16 * 1024
STREAM_BYTES = 32
# Inputs a multiple of a page apart fall into one set of the L1 cache, which holds so many lines.
PAGE = 4096
L1_WAYS = 6
# Alternatives to the best block and split that a search may try: no slower than this by the model.
SLOWEST = 1.3
MOST_BLOCKS = 5
MOST_SPLITS = 4


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


def rank_blocks(
    shape: Geometry,
    vectors: int,
    registers: int,
    cost: StepCost,
    panel_bytes: int,
    vector_bytes: int,
    element_bytes: int,
) -> list[Block]:
    """Return the register block with the least modelled time, and others that come near.

    ``vectors`` is those of one group of channels, ``panel_bytes`` the weights of one vector, of
    which a step reads ``vector_bytes``, and ``element_bytes`` the size of an input element.
    """

    def time(block: Block) -> float:
        return _block_time(block, shape, vectors, cost, panel_bytes, vector_bytes, element_bytes)

    def size(block: Block) -> tuple[int, int]:
        """Alike are as many vectors, and pixels within about a quarter."""
        return block.vectors, round(3 * log2(block.pixels))

    return near_best(_blocks(shape, vectors, registers, cost), time, size)


def near_best(
    items: Iterable[T], cost: Callable[[T], float], likeness: Callable[[T], object]
) -> list[T]:
    """Return the cheapest item and up to ``MOST_BLOCKS`` in all that cost little more.

    Of those that are alike only the cheapest; of equal cost the first.
    """
    ranked = sorted(((cost(item), number, item) for number, item in enumerate(items)))
    limit = SLOWEST * ranked[0][0]
    distinct: dict[object, T] = {}
    for price, _, item in ranked:
        if price <= limit:
            distinct.setdefault(likeness(item), item)
    return list(distinct.values())[:MOST_BLOCKS]


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
    vector_bytes: int,
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
            time += width * vector_bytes / STREAM_BYTES
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


def rank_splits(
    *, macs: int, channel_blocks: int, row_blocks: int, input_bytes: int, weight_bytes: int,
    threads: int,
) -> list[Split]:  # fmt: skip
    """Return the split over threads with the least work in its largest task, then others.

    The others are its loops in the other order, and splits into as many tasks along other axes.
    """
    usable = min(threads, max(1, macs // SERIAL_MACS))

    def cost(channels: int) -> float:
        rows = usable // channels
        work = -(-channel_blocks // channels) * -(-row_blocks // rows)
        share = work / (channel_blocks * row_blocks)
        traffic = input_bytes / rows + weight_bytes / channels
        return macs * share + 4 * traffic

    def split(channels: int) -> Split:
        tasks = min(channels, channel_blocks), min(usable // channels, row_blocks)
        # Blocks of whichever operand is larger stay outside, so that it is read once.
        outer = input_bytes / tasks[1] > max(512 * 1024, weight_bytes / tasks[0])
        return Split(channels=tasks[0], rows=tasks[1], rows_outer=outer)

    best, *others = [split(channels) for channels in sorted(range(1, usable + 1), key=cost)]
    ranked = [best, *(other for other in others if other.tasks >= best.tasks)]
    if channel_blocks > best.channels and row_blocks > best.rows:
        ranked.insert(1, replace(best, rows_outer=not best.rows_outer))
    return list(dict.fromkeys(ranked))[:MOST_SPLITS]

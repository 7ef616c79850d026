"""Blocks of AMX tiles, chosen by a small cost model. No tvm, no NumPy.

Eight tiles of 16 rows × 64 bytes: a block of M × N accumulators needs M tiles of input and N of
weights. A product takes a cycle a row and 52 cycles until its accumulator is free again; loading
takes half a cycle a row.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpq_compile.kernels.blocking import Block, near_best
from mpq_compile.kernels.geometry import TILE_ROWS, Geometry

LATENCY = 52
# (tiles of pixels, tiles of channels) of a block
SHAPES = ((2, 2), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1))


def rank_tiles(shape: Geometry, vectors: int, threads: int) -> list[tuple[Block, int]]:
    """Return (block, flat rows) with the least modelled time, and others that come near.

    See ``GemmPlan.flat_rows``.
    """
    flat_rows = _flat_rows(shape, vectors, threads)
    return near_best(
        _candidates(shape, vectors, flat_rows),
        lambda tiles: _time(shape, *tiles, vectors),
        lambda tiles: tiles,
    )


def segments(block: Block, shape: Geometry) -> list[int]:
    """Return the pixels of each tile of a block, in order of the block's pixels."""
    if block.rows == 1 or shape.out_width == 1:
        return _equal_parts(block.pixels, TILE_ROWS)
    return [part for _ in range(block.rows) for part in _equal_parts(block.columns, TILE_ROWS)]


def _equal_parts(extent: int, limit: int) -> list[int]:
    """Split ``extent`` into the fewest parts of at most ``limit``, as even as possible."""
    count = -(-extent // limit)
    return [extent // count + (i < extent % count) for i in range(count)]


def _flat_rows(shape: Geometry, vectors: int, threads: int) -> int:
    """Rows of a flat line: the image, or a thread's share where channels do not fill threads."""
    if shape.stride != (1, 1) or shape.out_width == 1:
        return 0
    shares = 1 if shape.batch >= threads or vectors >= 4 * threads else threads
    return -(-shape.out_height // shares)


def _candidates(shape: Geometry, vectors: int, flat_rows: int) -> Iterator[tuple[Block, int]]:
    for pixels, channels in SHAPES:
        width = min(channels, vectors)
        limit = pixels * TILE_ROWS
        if shape.out_width == 1:
            rows = _equal_parts(shape.out_height, limit)[0]
            yield Block(rows=rows, columns=1, vectors=width), 0
            continue
        rows = min(pixels, shape.out_height) if shape.out_width <= TILE_ROWS else 1
        columns = _equal_parts(shape.out_width, limit if rows == 1 else TILE_ROWS)[0]
        yield Block(rows=rows, columns=columns, vectors=width), 0
        if flat_rows > 1:
            line = (flat_rows - 1) * shape.padded_width + shape.out_width
            yield Block(rows=1, columns=min(limit, line), vectors=width), flat_rows


def _time(shape: Geometry, block: Block, flat_rows: int, vectors: int) -> float:
    """Return modelled cycles per tile of k, summed over the blocks of an image and a group."""
    if flat_rows:
        lines = -(-shape.out_height // flat_rows)
        line = (flat_rows - 1) * shape.padded_width + shape.out_width
    else:
        lines, line = -(-shape.out_height // block.rows), shape.out_width
    blocks = lines * -(-line // block.columns) * -(-vectors // block.vectors)
    parts = segments(block, shape)
    products = sum(parts) * block.vectors
    loads = (sum(parts) + TILE_ROWS * block.vectors) / 2
    return blocks * (max(products, loads, LATENCY) + 8)

"""Transposition of [batch, rows, columns], fused with a conversion of every element.

Whole vectors are read and written; between them elements move by shuffles. A few rows (an image's
channels) are interleaved into one long vector, a few columns taken apart from one; everything else
goes in square blocks. Blocks at the edge overlap their neighbours instead of ending in scalars:
what they write twice is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import load, over_elements, permute, shared_range, store

Convert = Callable[[Any, int], Any]

# Up to this many rows or columns are interleaved rather than moved in blocks.
FEW = 4


def emit_transpose(
    x: Any,
    o: Any,
    shape: tuple[int, int, int],
    lanes: int,
    threads: int,
    convert: Convert,
    narrower: bool,
) -> None:
    """Emit o[b, column, row] = convert(x[b, row, column]).

    Args:
        x: Flat buffer of [batch, rows, columns].
        o: Flat buffer of [batch, columns, rows].
        shape: (batch, rows, columns) of x.
        lanes: Elements of one vector.
        threads: Tasks to share the work among; 1 for a small one.
        convert: ``convert(stored vector, lanes) -> stored vector``.
        narrower: True where the result is no wider than the source: then convert before moving.
    """
    batch, rows, columns = shape
    if rows == 1 or columns == 1:
        size = batch * rows * columns
        over_elements(
            size, lanes, threads, lambda at, w: store(o, at, w, convert(load(x, at, w), w))
        )
    elif rows <= FEW:
        _interleave(x, o, shape, lanes, threads, convert)
    elif columns <= FEW:
        _take_apart(x, o, shape, lanes, threads, convert)
    else:
        block = min(lanes, 1 << (min(rows, columns).bit_length() - 1))
        _blocks(x, o, shape, block, threads, convert, narrower)


def _strips(
    batch: int, extent: int, lanes: int, threads: int, body: Callable[[Any, Any, int], None]
) -> None:
    """Emit ``body(b, position, lanes)`` along ``extent`` of every batch element."""
    strips = extent // lanes
    if strips:
        shared_range(
            batch * strips,
            threads,
            lambda i: body(T.floordiv(i, strips), T.floormod(i, strips) * lanes, lanes),
        )
    for tail in range(strips * lanes, extent):
        with T.serial(batch) as b:
            body(b, tail, 1)


def _interleave(
    x: Any, o: Any, shape: tuple[int, int, int], lanes: int, threads: int, convert: Convert
) -> None:
    batch, rows, columns = shape

    def body(b: Any, column: Any, width: int) -> None:
        start = b * (rows * columns)
        vectors = [
            T.bind(convert(load(x, start + row * columns + column, width), width))
            for row in range(rows)
        ]
        to = start + column * rows
        if width == 1:
            for row, value in enumerate(vectors):
                store(o, to + row, 1, value)
            return
        order = [row * width + i for i in range(width) for row in range(rows)]
        store(o, to, rows * width, permute(vectors, order))

    _strips(batch, columns, lanes, threads, body)


def _take_apart(
    x: Any, o: Any, shape: tuple[int, int, int], lanes: int, threads: int, convert: Convert
) -> None:
    batch, rows, columns = shape

    def body(b: Any, row: Any, width: int) -> None:
        start = b * (rows * columns)
        at = start + row * columns
        joined = T.bind(load(x, at, columns * width)) if width > 1 else None
        for column in range(columns):
            order = range(column, columns * width, columns)
            value = load(x, at + column, 1) if joined is None else permute([joined], order)
            store(o, start + column * rows + row, width, convert(value, width))

    _strips(batch, rows, lanes, threads, body)


def _blocks(
    x: Any,
    o: Any,
    shape: tuple[int, int, int],
    block: int,
    threads: int,
    convert: Convert,
    narrower: bool,
) -> None:
    batch, rows, columns = shape
    across, down = -(-columns // block), -(-rows // block)

    def body(index: Any) -> None:
        start = T.bind(T.floordiv(index, across) * (rows * columns))
        column = T.bind(T.min(T.floormod(index, across) * block, columns - block))
        with T.serial(down) as d:
            row = T.bind(T.min(d * block, rows - block))
            vectors = [load(x, start + (row + i) * columns + column, block) for i in range(block)]
            if narrower:
                vectors = [convert(vector, block) for vector in vectors]
            vectors = transposed(vectors, block)
            if not narrower:
                vectors = [convert(vector, block) for vector in vectors]
            for i, vector in enumerate(vectors):
                store(o, start + (column + i) * rows + row, block, vector)

    shared_range(batch * across, threads, body)


def transposed(vectors: list[Any], block: int) -> list[Any]:
    """Transpose a square of ``block`` vectors: log2(block) rounds of pairwise interleaving.

    Interleaving vector i with vector i + block/2 moves one bit of the element's address from the
    row to the column; after log2(block) rounds the two have changed places.
    """
    half = block // 2
    low = [i // 2 + (i % 2) * block for i in range(block)]
    high = [half + index for index in low]
    for _ in range(block.bit_length() - 1):
        vectors = [T.bind(vector) for vector in vectors]
        vectors = [
            permute((vectors[i], vectors[i + half]), order)
            for i in range(half)
            for order in (low, high)
        ]
    return vectors

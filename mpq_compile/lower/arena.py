"""Places of tensors in one buffer: those that are never alive together share memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class Span:
    """Bytes that are needed from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Span) -> bool:
        """Tell whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


def aligned(size: int) -> int:
    """Round a number of bytes up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def offsets_of(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return the offset of each part of a buffer that holds all of them, and its size."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += aligned(size)
    return offsets, end


def place(spans: Sequence[Span]) -> tuple[list[int], int]:
    """Return the offset of each span, and the bytes of the whole.

    The largest come first; each takes the lowest gap among those already placed that it meets.
    """
    offsets = [0] * len(spans)
    placed: list[int] = []
    for index in sorted(range(len(spans)), key=lambda i: -spans[i].size):
        span = spans[index]
        beside = [i for i in placed if span.meets(spans[i])]
        taken = sorted((offsets[i], offsets[i] + aligned(spans[i].size)) for i in beside)
        offsets[index] = _lowest_gap(taken, aligned(span.size))
        placed.append(index)
    ends = [offset + aligned(span.size) for offset, span in zip(offsets, spans, strict=True)]
    return offsets, max(ends, default=0)


def _lowest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    start = 0
    for low, high in taken:
        if start + size <= low:
            break
        start = max(start, high)
    return start

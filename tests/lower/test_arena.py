"""Tensors in one arena: those alive together never overlap, and memory is reused."""

from __future__ import annotations

import random

import pytest

from mpq_compile.lower.arena import ALIGNMENT, Span, aligned, offsets_of, place


def random_spans(seed: int) -> list[Span]:
    """Return spans of random sizes and lifetimes."""
    chance = random.Random(seed)
    firsts = [chance.randrange(20) for _ in range(30)]
    return [
        Span(size=chance.randrange(1, 5000), first=first, last=first + chance.randrange(6))
        for first in firsts
    ]


@pytest.mark.parametrize("seed", range(20))
def test_spans_that_meet_do_not_overlap(seed: int) -> None:
    spans = random_spans(seed)
    offsets, end = place(spans)
    for i, (a, start) in enumerate(zip(spans, offsets, strict=True)):
        assert start % ALIGNMENT == 0 and start + a.size <= end
        for b, other in zip(spans[:i], offsets[:i], strict=True):
            apart = start + a.size <= other or other + b.size <= start
            assert apart or not a.meets(b)


def test_a_chain_needs_two_tensors_at_a_time() -> None:
    spans = [Span(size=1000, first=i, last=i + 1) for i in range(10)]
    assert place(spans)[1] == 2 * aligned(1000)


def test_parts_of_a_buffer_are_aligned() -> None:
    assert offsets_of([1, 64, 65]) == ([0, 64, 128], 256)
    assert place([]) == ([], 0)

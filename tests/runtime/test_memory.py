"""The memory that a network's parameters and its arena lie in."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from mpq_compile.runtime.engine import joined, placed
from mpq_compile.runtime.native import ALIGNMENT, HUGE_PAGE, huge_memory


@pytest.mark.parametrize("size", [1, 4096, HUGE_PAGE, HUGE_PAGE + 1])
def test_it_is_aligned_and_zero(size: int) -> None:
    memory = huge_memory(size)
    assert memory.shape == (size,) and memory.dtype == np.uint8
    assert memory.ctypes.data % HUGE_PAGE == 0 and not memory.any()
    memory[:] = 7  # all of it is there, and may be written to


def test_the_last_page_is_a_huge_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it is only if the mapping covers all of it, wherever it begins."""
    lengths: list[int] = []

    def mapped(file: int, length: int, **options: int) -> mmap.mmap:
        lengths.append(length)
        return real(file, length, **options)

    real = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", mapped)
    for size in (1, HUGE_PAGE, HUGE_PAGE + 1):
        huge_memory(size)
    assert lengths == [2 * HUGE_PAGE, 2 * HUGE_PAGE, 3 * HUGE_PAGE]


def test_it_lives_as_long_as_what_shows_it() -> None:
    cells = [huge_memory(1 << 20)[64:].view(np.int32) for _ in range(8)]
    for number, part in enumerate(cells):
        part[:] = number
    assert [int(part.sum()) // part.size for part in cells] == list(range(8))


def test_a_system_without_huge_pages_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)  # EINVAL
    assert not huge_memory(100).any()
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert not huge_memory(100).any()


@pytest.mark.parametrize("counts", [[], [3], [ALIGNMENT, 5, 1]])
def test_parameters_and_what_lies_behind(counts: list[int]) -> None:
    parameters = [np.full(count, 1 + i, np.int32) for i, count in enumerate(counts)]
    weights, arena = joined(parameters, 1000)
    assert len(weights) >= 1 and arena.shape == (1000,) and not arena.any()
    assert arena.ctypes.data % ALIGNMENT == 0
    arena[:] = 255
    found = weights.view(np.int32) if counts else np.zeros(0, np.int32)
    sums = sum(count * (1 + i) for i, count in enumerate(counts))
    assert found.sum() == sums


def test_what_is_placed_shares_memory_as_parameters_do() -> None:
    arrays = [np.arange(5, dtype=np.int32), np.ones(3, np.float32), np.zeros(0, np.uint8)]
    copies = placed(arrays)
    for array, copy in zip(arrays, copies, strict=True):
        assert copy.dtype == array.dtype and copy.flags.writeable
        np.testing.assert_array_equal(copy, array)
    first, second, _ = (copy.ctypes.data for copy in copies)
    assert first % HUGE_PAGE == 0 and second - first == ALIGNMENT
    copies[0][:] = 7  # and nothing else changes
    assert copies[1].sum() == 3 and arrays[0].sum() == 10

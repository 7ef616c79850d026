"""Rows written at run-time positions: equal to ``index_copy``, in place and into a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import call
from tiers import DISTINCT_TIERS

from mpq_compile.kernels import write_rows
from mpq_compile.kernels.elementwise_workload import WriteRowsWorkload

SHAPES = [(1, 8, 1, 16), (6, 40, 1, 64), (3, 7, 4, 5), (2, 300, 3, 130)]


@DISTINCT_TIERS
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_equals_index_copy(shape, in_place, tier):
    outer, size, rows, inner = shape
    # Rows as a linear layer leaves them: [row][outer][inner], behind other columns.
    row, offset = 3 * outer * inner, outer * inner
    work = WriteRowsWorkload(
        outer=outer, size=size, rows=rows, inner=inner, source_size=rows * row,
        source_offset=offset, source_strides=(inner, row), in_place=in_place,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(sum(shape))
    cache = torch.randn(outer, size, inner, generator=generator)
    source = torch.randn(rows, 3, outer, inner, generator=generator)
    positions = torch.randperm(size, generator=generator)[:rows]
    expected = cache.index_copy(1, positions, source[:, 1].transpose(0, 1))
    arguments = [source.flatten().numpy(), positions.numpy()]
    flat = cache.flatten().numpy()
    if not in_place:
        arguments, flat = [*arguments, flat], np.full(cache.numel(), np.nan, np.float32)
    function = write_rows.generate(work, tier, 2)
    found = call(function, tier, arguments, flat)
    assert np.array_equal(found, expected.flatten().numpy())


@DISTINCT_TIERS
def test_positions_outside_are_moved_to_the_ends(tier):
    work = WriteRowsWorkload(
        outer=1, size=4, rows=2, inner=2, source_size=4, source_offset=0, source_strides=(4, 2),
        in_place=True,
    )  # fmt: skip
    arguments = [np.arange(1, 5, dtype=np.float32), np.array([-3, 9])]
    function = write_rows.generate(work, tier, 2)
    found = call(function, tier, arguments, np.zeros(8, np.float32))
    assert found.tolist() == [1, 2, 0, 0, 0, 0, 3, 4]

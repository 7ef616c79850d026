"""Lookups of packed tables: the oracle's very bits on every tier, and no row outside the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tiers import DISTINCT_TIERS

from mpq_compile.kernels.embedding import generate
from mpq_compile.kernels.embedding_workload import EmbeddingWorkload, embedding_bits, pack_table
from mpq_compile.kernels.tier import Tier, detect_tier
from mpq_compile.quant import reference
from mpq_compile.runtime.kernel_case import (
    EmbeddingCase,
    embedding_arguments,
    make_embedding_case,
)

WORKLOADS = (
    EmbeddingWorkload(tokens=1, rows=3, width=33),
    EmbeddingWorkload(tokens=5, rows=7, width=20, index="int32"),
    EmbeddingWorkload(tokens=90, rows=40, width=384, weight_bits=4),
    EmbeddingWorkload(tokens=3, rows=9, width=26, weight_bits=4),
    EmbeddingWorkload(tokens=3, rows=9, width=64, weight_bits=4, group_size=32),
    EmbeddingWorkload(tokens=3, rows=9, width=96, group_size=32),
    EmbeddingWorkload(tokens=4, rows=9, width=50, compute="bf16"),
    EmbeddingWorkload(tokens=4, rows=9, width=50, compute="fp32"),
)


def looked_up(workload: EmbeddingWorkload, case: EmbeddingCase, tier: Tier) -> np.ndarray:
    """Return what the kernel of a tier finds."""
    program = tvm.compile(generate(workload, tier, 2), target=tvm.target.Target(tier.target(2)))
    found = tvm.runtime.tensor(np.zeros(workload.tokens * workload.width, np.float32))
    arguments = [tvm.runtime.tensor(array) for array in embedding_arguments(workload, case)]
    program["main"](*arguments, found)
    return found.numpy().reshape(workload.tokens, workload.width)


def expected(case: EmbeddingCase, numbers: np.ndarray | None = None) -> np.ndarray:
    """Return what the oracle finds."""
    arrays = (case.numbers if numbers is None else numbers, case.table, case.scale)
    return reference.embedding(*map(torch.from_numpy, arrays)).numpy()


@DISTINCT_TIERS
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.key)
def test_equals_the_oracle(tier: Tier, workload: EmbeddingWorkload) -> None:
    case = make_embedding_case(workload, seed=1)
    np.testing.assert_array_equal(looked_up(workload, case, tier), expected(case))


@settings(max_examples=12, deadline=None)
@given(
    tokens=st.integers(1, 70),
    rows=st.integers(1, 300),
    width=st.integers(1, 130),
    bits=st.integers(2, 8),
)
def test_equals_the_oracle_on_random_shapes(tokens: int, rows: int, width: int, bits: int) -> None:
    workload = EmbeddingWorkload(
        tokens=tokens, rows=rows, width=width, weight_bits=embedding_bits(bits, width)
    )
    case = make_embedding_case(workload, seed=bits)
    np.testing.assert_array_equal(looked_up(workload, case, detect_tier()), expected(case))


def test_a_number_outside_the_table_reads_the_row_at_its_nearer_end() -> None:
    workload = EmbeddingWorkload(tokens=4, rows=5, width=16)
    drawn = make_embedding_case(workload, seed=0)
    numbers = np.array([-1, 5, 2**40, -(2**50)])
    case = EmbeddingCase(numbers=numbers, table=drawn.table, scale=drawn.scale)
    nearest = expected(case, np.array([0, 4, 4, 0]))
    np.testing.assert_array_equal(looked_up(workload, case, detect_tier()), nearest)


def test_four_bits_take_half_a_byte_in_memory() -> None:
    workload = EmbeddingWorkload(tokens=1, rows=6, width=10, weight_bits=4)
    table = make_embedding_case(workload, seed=0).table
    assert pack_table(workload, table).nbytes == workload.table_size == 30
    assert embedding_bits(3, 10) == 4 and embedding_bits(4, 5) == embedding_bits(5, 10) == 8

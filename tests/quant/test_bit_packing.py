"""Codes survive packing at every width, and take the bytes they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpq_compile.quant.packing import pack_bits, packed_bytes, unpack_bits

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


@given(bits=st.integers(2, 8), shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_unpacking_undoes_packing(bits: int, shape: tuple[int, ...], seed: int) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(np.int8)
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_bytes(codes.size, bits) == -(-codes.size * bits // 8)
    assert np.array_equal(unpack_bits(packed, bits, shape), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_extremes(bits: int) -> None:
    codes = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0, -1, 1], np.int8)
    assert np.array_equal(unpack_bits(pack_bits(codes, bits), bits, (5,)), codes)


def test_order_of_bits_is_little_endian() -> None:
    assert pack_bits(np.array([1, -1], np.int8), 4).tolist() == [0xF1]
    assert pack_bits(np.array([1, 2, -1, 0], np.int8), 2).tolist() == [0b00_11_10_01]


def test_packing_does_not_share_memory() -> None:
    codes = np.array([1, 2, 3], np.int8)
    packed = pack_bits(codes, 8)
    packed[0] = 9
    assert codes[0] == 1

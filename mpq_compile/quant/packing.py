"""Bit packing of weights at their true width, 2 to 8 bits. NumPy only."""

from __future__ import annotations

import numpy as np


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack signed integer codes of 2 to 8 bits, little-endian bit order.

    Args:
        codes: int8 of any shape, each in [−2^(bits−1), 2^(bits−1) − 1].
        bits: Width of one code.

    Returns:
        uint8 of ``packed_bytes(codes.size, bits)`` elements.
    """
    flat = np.ascontiguousarray(codes, np.int8).reshape(-1)
    if bits == 8:
        return flat.view(np.uint8).copy()
    planes = (flat.view(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the int8 codes of ``shape`` that :func:`pack_bits` packed."""
    if bits == 8:
        return packed.view(np.int8).reshape(shape).copy()
    count = int(np.prod(shape))
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    codes = planes @ (1 << np.arange(bits)).astype(np.int16)
    signed = np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    return signed.astype(np.int8).reshape(shape)

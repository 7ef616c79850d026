"""Workload of an embedding lookup, and its table as the kernel reads it. No tvm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpq_compile.kernels.packing import bf16_bits

# Bits of a code as the kernel reads it: fewer are stored in nibbles, more in bytes.
_NIBBLE = 4


@dataclass(frozen=True, kw_only=True)
class EmbeddingWorkload:
    """Rows of a table, looked up by number and widened to float32.

    Args:
        tokens: Rows that are looked up.
        rows, width: Shape of the table.
        compute: "int" for codes with a scale for each row (or group of a row), "bf16" or "fp32".
        weight_bits: 4 where two codes share a byte, else 8; of integer tables.
        group_size: Codes that share a scale; the whole row for None.
        index: Type of the numbers.
    """

    tokens: int
    rows: int
    width: int
    compute: Literal["int", "bf16", "fp32"] = "int"
    weight_bits: Literal[4, 8] = 8
    group_size: int | None = None
    index: Literal["int32", "int64"] = "int64"

    @property
    def group(self) -> int:
        """Codes that share a scale."""
        return self.group_size or self.width

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return self.width // self.group

    @property
    def table_size(self) -> int:
        """Elements of the table as the kernel reads it."""
        cells = self.rows * self.width
        return cells // 2 if self.is_packed else cells

    @property
    def table_dtype(self) -> str:
        """Type of those elements."""
        floats = {"bf16": "uint16", "fp32": "float32"}
        return floats.get(self.compute, "uint8" if self.is_packed else "int8")

    @property
    def is_packed(self) -> bool:
        """True where two codes share a byte."""
        return self.compute == "int" and self.weight_bits == _NIBBLE

    @property
    def key(self) -> str:
        """Return the canonical name."""
        bits = f"_w{self.weight_bits}" if self.compute == "int" else ""
        group = f"_q{self.group_size}" if self.group_size else ""
        shape = f"m{self.tokens}_r{self.rows}_n{self.width}"
        return f"embedding_{shape}{bits}{group}_{self.compute}_{self.index}"


def embedding_bits(bits: int, group: int) -> Literal[4, 8]:
    """Return the bits of a code in memory, of codes of ``bits`` in groups of ``group``."""
    return 4 if bits <= _NIBBLE and group % 2 == 0 else 8


def pack_table(workload: EmbeddingWorkload, table: np.ndarray) -> np.ndarray:
    """Return the flat table as the kernel reads it.

    Two codes share a byte by halves of a group: the low nibble is of the first half, the high one
    of the second, so that a vector of bytes gives two vectors of neighbours.

    Args:
        workload: Its shape and formats.
        table: [rows, width], int8 codes or float32.
    """
    if workload.compute == "fp32":
        return np.ascontiguousarray(table, np.float32).reshape(-1)
    if workload.compute == "bf16":
        return bf16_bits(table).reshape(-1)
    if not workload.is_packed:
        return np.ascontiguousarray(table, np.int8).reshape(-1)
    halves = (table.view(np.uint8) & 15).reshape(-1, 2, workload.group // 2)
    return (halves[:, 0] | halves[:, 1] << 4).reshape(-1)

"""Workload of scaled dot product attention: shapes, formats and where the operands lie. No tvm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.workload import Format

# |Σ p · (v − zp)| ≤ keys · 255 · 255 must stay below 2^31 for int32 sums.
MAX_KEYS = (2**31 - 1) // (255 * 255)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a [batch, heads, rows, columns] operand lies in a flat buffer; columns are contiguous.

    Args:
        size: Elements of the whole buffer.
        strides: Elements between batches, heads and rows; 0 where it is broadcast.
        offset: Element at which the operand starts.
    """

    size: int
    strides: tuple[int, int, int]
    offset: int = 0

    @property
    def key(self) -> str:
        """Return the canonical name."""
        return f"{self.size}+{self.offset}@{'x'.join(map(str, self.strides))}"


@dataclass(frozen=True, kw_only=True)
class AttentionWorkload:
    """softmax(q · kᵀ · scale + mask) · v for every head, with its epilogue.

    Args:
        queries, keys: Rows of q, and of k and v.
        depth, value_depth: Columns of q and k, and of v and the output.
        compute: Format of q, k and v; int8 reads u8 codes.
        out: Format of the output.
        causal: Row i attends to keys 0 … i only.
        q, k, v, output: Where the operands lie.
        mask: Where the float32 mask [batch, heads, queries, keys] lies, or None.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    compute: Literal["int8", "bf16", "fp32"] = "int8"
    out: Format = "u8"
    causal: bool = False
    q: Layout
    k: Layout
    v: Layout
    output: Layout
    mask: Layout | None = None

    def __post_init__(self) -> None:
        if self.compute == "int8" and self.keys > MAX_KEYS:
            raise LoweringError(
                "the int32 sums of attention could overflow",
                where=self.key,
                expected=f"at most {MAX_KEYS} keys",
                found=str(self.keys),
                remedy="constrain the sites before it to fp32 or bf16",
            )

    @property
    def operands(self) -> tuple[Layout, Layout, Layout]:
        """Where q, k and v lie."""
        return self.q, self.k, self.v

    @property
    def macs(self) -> int:
        """Multiply-adds of both products, masked ones included."""
        scores = self.batch * self.heads * self.queries * self.keys
        return scores * (self.depth + self.value_depth)

    @property
    def key(self) -> str:
        """Canonical text for caches."""
        shape = f"{self.batch}x{self.heads}x{self.queries}x{self.keys}"
        text = f"attention/{shape}x{self.depth}x{self.value_depth}/{self.compute}-{self.out}"
        places = [self.q, self.k, self.v, self.output, *([self.mask] if self.mask else [])]
        return "/".join([text, "causal" if self.causal else "full", *(p.key for p in places)])


def heads_first(batch: int, heads: int, rows: int, columns: int) -> Layout:
    """Return the layout of a contiguous [batch, heads, rows, columns]."""
    size = batch * heads * rows * columns
    return Layout(size=size, strides=(heads * rows * columns, rows * columns, columns))


def heads_last(batch: int, heads: int, rows: int, columns: int) -> Layout:
    """Return the layout of heads that lie side by side in [batch, rows, heads · columns]."""
    size = batch * heads * rows * columns
    return Layout(size=size, strides=(heads * rows * columns, columns, heads * columns))

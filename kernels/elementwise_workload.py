"""Workloads of the operators that do not multiply matrices. Does not import tvm.

A workload holds shapes and formats only: scales, zero points and bounds are runtime arguments, so
that equal shapes share one function and one measurement. ``key`` names it in caches and databases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpq_compile.kernels.attention_workload import Layout

Format = Literal["u8", "bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class ConvertWorkload:
    """Quantize, dequantize or requantize ``size`` elements."""

    size: int
    source: Format
    target: Format

    @property
    def key(self) -> str:
        """Return the canonical name."""
        return f"convert/{self.size}/{self.source}-{self.target}"


@dataclass(frozen=True, kw_only=True)
class TransposeConvertWorkload:
    """A conversion fused with a change between [B, C, P] (NCHW) and [B, P, C] (NHWC).

    ``pixels`` is height × width; ``direction`` names the layout of the result.
    """

    batch: int
    channels: int
    pixels: int
    source: Format
    target: Format
    direction: Literal["to_nhwc", "to_nchw"]

    @property
    def key(self) -> str:
        """Return the canonical name."""
        shape = f"{self.batch}x{self.channels}x{self.pixels}"
        return f"{self.direction}/{shape}/{self.source}-{self.target}"


@dataclass(frozen=True, kw_only=True)
class AddWorkload:
    """Sum of two tensors of ``size`` elements, each with its own format and scale."""

    size: int
    a: Format
    b: Format
    out: Format

    @property
    def key(self) -> str:
        """Return the canonical name."""
        return f"add/{self.size}/{self.a}+{self.b}-{self.out}"


@dataclass(frozen=True, kw_only=True)
class MulWorkload:
    """Product of a [batch, pixels, channels] and b of the same shape.

    With ``broadcast="pixel"`` b is [batch, channels]: a squeeze-and-excite gate.
    """

    batch: int = 1
    pixels: int
    channels: int
    a: Format
    b: Format
    out: Format
    broadcast: Literal["none", "pixel"] = "none"

    @property
    def key(self) -> str:
        """Return the canonical name."""
        shape = f"{self.batch}x{self.pixels}x{self.channels}"
        return f"mul/{shape}/{self.a}*{self.b}-{self.out}/{self.broadcast}"


@dataclass(frozen=True, kw_only=True)
class LutWorkload:
    """Look ``size`` u8 codes up in a table of 256."""

    size: int

    @property
    def key(self) -> str:
        """Return the canonical name."""
        return f"lut/{self.size}"


@dataclass(frozen=True, kw_only=True)
class ConcatWorkload:
    """Join NHWC tensors along their channels, without arithmetic; pixels include the batch."""

    pixels: int
    channels: tuple[int, ...]
    dtype: Format

    @property
    def key(self) -> str:
        """Return the canonical name."""
        return f"concat/{self.pixels}x{'+'.join(map(str, self.channels))}/{self.dtype}"


@dataclass(frozen=True, kw_only=True)
class QuantizeRowsWorkload:
    """Quantize each of ``rows`` float32 rows by its own largest magnitude."""

    rows: int
    features: int

    @property
    def key(self) -> str:
        """Return the canonical name."""
        return f"quantize_rows/{self.rows}x{self.features}"


@dataclass(frozen=True, kw_only=True)
class PoolWorkload:
    """Pooling of NHWC [batch, height, width, channels] to [batch, out_height, out_width, channels].

    The windows are runtime arguments. ``step`` is the dilation of a window's cells (max only).
    A mean over H and W is an average pooling with one window.
    """

    kind: Literal["avg", "max"]
    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    step: tuple[int, int] = (1, 1)
    source: Format
    out: Format

    @property
    def key(self) -> str:
        """Return the canonical name."""
        cells = f"{self.batch}x{self.height}x{self.width}x{self.channels}"
        shape = f"{cells}-{self.out_height}x{self.out_width}/step{self.step[0]}x{self.step[1]}"
        return f"{self.kind}pool/{shape}/{self.source}-{self.out}"


@dataclass(frozen=True, kw_only=True)
class NormWorkload:
    """Layer norm of [rows, columns] over the columns; without ``centred``, RMS norm.

    ``scaled`` and ``shifted`` tell whether columns have factors and offsets. The result is stored
    once in each of ``outputs``.
    """

    rows: int
    columns: int
    epsilon: float
    centred: bool = True
    scaled: bool = True
    shifted: bool = True
    source: Format
    outputs: tuple[Format, ...]

    @property
    def key(self) -> str:
        """Return the canonical name."""
        kind = "layernorm" if self.centred else "rmsnorm"
        shape = f"{self.rows}x{self.columns}/e{self.epsilon:g}"
        columns = f"{int(self.scaled)}{int(self.shifted)}"
        return f"{kind}/{shape}/{columns}/{self.source}-{'+'.join(self.outputs)}"


@dataclass(frozen=True, kw_only=True)
class WriteRowsWorkload:
    """Write [outer, rows, inner] into float32 [outer, size, inner] at ``rows`` positions.

    Args:
        source_size, source_offset: Elements of the buffer that holds the rows; where they start.
        source_strides: Elements between outer neighbours, and between rows.
        in_place: The tensor itself is changed, not a copy of it.
    """

    outer: int
    size: int
    rows: int
    inner: int
    source_size: int
    source_offset: int
    source_strides: tuple[int, int]
    in_place: bool

    @property
    def key(self) -> str:
        """Return the canonical name."""
        shape = f"{self.outer}x{self.rows}of{self.size}x{self.inner}"
        place = f"{self.source_size}+{self.source_offset}@{self.source_strides[0]}"
        how = "in_place" if self.in_place else "copy"
        return f"write_rows/{shape}/{place}x{self.source_strides[1]}/{how}"


@dataclass(frozen=True, kw_only=True)
class RotaryWorkload:
    """Rotary embedding of float32 [batch, heads, rows, depth].

    Args:
        x, cos, sin: Where the operands lie; cos and sin have strides of 0 where they broadcast.
    """

    batch: int
    heads: int
    rows: int
    depth: int
    x: Layout
    cos: Layout
    sin: Layout

    @property
    def key(self) -> str:
        """Return the canonical name."""
        shape = f"{self.batch}x{self.heads}x{self.rows}x{self.depth}"
        return "/".join(["rotary", shape, self.x.key, self.cos.key, self.sin.key])


@dataclass(frozen=True, kw_only=True)
class RecurrentStepWorkload:
    """What a recurrent cell makes of float32 products of its input and of its hidden state.

    Args:
        kind: Which cell: 4 gates, and a cell state beside the hidden one, or 3 gates.
        inner_size: Elements of the buffer that holds the products of the inputs of all steps.
        inner_stride: Elements from the products of one row to those of the next.
        outer: Those of the hidden state: a row each, one for all (a bias), or none.
        carried: False where the state before, the cell's or the hidden one, is zero and no operand.
        outputs: Formats of the hidden state, which is stored once in each.
    """

    kind: Literal["lstm", "gru"]
    rows: int
    hidden: int
    inner_size: int
    inner_stride: int
    outer: Literal["each", "shared", "none"]
    carried: bool
    outputs: tuple[Format, ...]

    @property
    def gates(self) -> int:
        """Gates of the cell."""
        return 4 if self.kind == "lstm" else 3

    @property
    def key(self) -> str:
        """Return the canonical name."""
        shape, state = f"{self.rows}x{self.hidden}", "carried" if self.carried else "first"
        operands = f"{self.inner_size}s{self.inner_stride}/{self.outer}/{state}"
        return f"{self.kind}_step/{shape}/{operands}/{'+'.join(self.outputs)}"

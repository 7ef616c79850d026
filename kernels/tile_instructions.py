"""The AMX tile instructions, and an emulation of each by plain loops.

The emulation makes the addressing, packing and tails of the tile kernels testable on every
machine: it keeps the tiles in buffers and follows Intel's definition of each instruction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.arguments import ELEMENT_BYTES
from mpq_compile.kernels.emit import widen
from mpq_compile.kernels.geometry import TILE_ROWS

TILES = 8
ROW_BYTES = 64
TILE_LANES = 16
# Accumulators, inputs, weights.
TILE_DTYPES = {"int8": ("int32", "uint8", "int8"), "bf16": ("float32", "uint16", "uint16")}


@dataclass(frozen=True, kw_only=True)
class TileUnit(ABC):
    """The tiles of one task. ``compute`` is "int8" (u8 × s8) or "bf16"."""

    compute: str

    @abstractmethod
    def begin(self) -> None:
        """Prepare a task."""

    @abstractmethod
    def configure(self, rows: Mapping[int, int], widths: Mapping[int, int] | None = None) -> None:
        """Give each tile its rows, unless it has them, of so many bytes: 64 where not told."""

    @abstractmethod
    def zero(self, tile: int) -> None:
        """Clear an accumulator."""

    @abstractmethod
    def load(self, tile: int, buffer: Any, offset: Any, stride: int) -> None:
        """Load rows that lie ``stride`` elements apart."""

    @abstractmethod
    def multiply(self, acc: int, inputs: int, weights: int) -> None:
        """Add the product of an input tile and a weight tile."""

    @abstractmethod
    def store(self, tile: int, buffer: Any, offset: Any, stride: int) -> None:
        """Store an accumulator to rows that lie ``stride`` elements apart."""

    @abstractmethod
    def end(self) -> None:
        """Return the tiles to their initial state."""


@dataclass(frozen=True, kw_only=True)
class TileIntrinsics(TileUnit):
    """The instructions themselves. The process must have asked Linux for permission.

    Configuring takes about 200 cycles, as long as a dozen products: a task remembers in a word
    which of ``known`` its tiles have, and configures them where it differs.
    """

    known: list[list[int]] = field(default_factory=list)
    current: list[Any] = field(default_factory=list)

    def begin(self) -> None:
        self.current[:] = [T.alloc_buffer((1,), "int32")]
        T.buffer_store(self.current[0], T.int32(-1), [0])

    def configure(self, rows: Mapping[int, int], widths: Mapping[int, int] | None = None) -> None:
        content = _configuration(rows, widths or {})
        if content not in self.known:
            self.known.append(content)
        wanted, current = T.int32(self.known.index(content)), self.current[0]
        with T.If(current[0] != wanted), T.Then():
            T.buffer_store(current, wanted, [0])
            # int32, as the other scratch: storage is shared between buffers of one dtype only.
            words = T.alloc_buffer((16,), "int32", align=64)
            for index, word in enumerate(content):
                T.buffer_store(words, T.int32(word), [index])
            _call("ldtilecfg", words.access_ptr("r"))

    def zero(self, tile: int) -> None:
        _call("tilezero", T.int8(tile))

    def load(self, tile: int, buffer: Any, offset: Any, stride: int) -> None:
        address = buffer.access_ptr("r", offset=offset)
        _call("tileloadd64", T.int8(tile), address, _stride_bytes(buffer, stride))

    def multiply(self, acc: int, inputs: int, weights: int) -> None:
        name = "tdpbusd" if self.compute == "int8" else "tdpbf16ps"
        _call(name, T.int8(acc), T.int8(inputs), T.int8(weights))

    def store(self, tile: int, buffer: Any, offset: Any, stride: int) -> None:
        address = buffer.access_ptr("w", offset=offset)
        _call("tilestored64", T.int8(tile), address, _stride_bytes(buffer, stride))

    def end(self) -> None:
        _call("tilerelease")


@dataclass(frozen=True, kw_only=True)
class EmulatedTiles(TileUnit):
    """Tiles in buffers, one for each tile and dtype.

    ``rows`` and ``widths`` are the configuration: it is known wherever code is generated.
    """

    rows: dict[int, int] = field(default_factory=dict)
    widths: dict[int, int] = field(default_factory=dict)
    buffers: dict[tuple[int, str], Any] = field(default_factory=dict)

    def begin(self) -> None:
        for tile in range(TILES):
            for dtype in sorted(set(TILE_DTYPES[self.compute])):
                elements = TILE_ROWS * ROW_BYTES // ELEMENT_BYTES[dtype]
                self.buffers[tile, dtype] = T.alloc_buffer((elements,), dtype)

    def configure(self, rows: Mapping[int, int], widths: Mapping[int, int] | None = None) -> None:
        self.rows.clear()
        self.rows.update(rows)
        self.widths.clear()
        self.widths.update(widths or {})

    def zero(self, tile: int) -> None:
        buffer = self._sums(tile)
        with T.serial(self.rows[tile]) as row, T.serial(TILE_LANES) as column:
            T.buffer_store(buffer, T.cast(0, buffer.dtype), [row * TILE_LANES + column])

    def load(self, tile: int, buffer: Any, offset: Any, stride: int) -> None:
        dtype = str(buffer.dtype)
        distance = ROW_BYTES // ELEMENT_BYTES[dtype]
        elements = self.widths.get(tile, ROW_BYTES) // ELEMENT_BYTES[dtype]
        with T.serial(self.rows[tile]) as row, T.serial(elements) as column:
            value = buffer[offset + row * stride + column]
            T.buffer_store(self.buffers[tile, dtype], value, [row * distance + column])

    def multiply(self, acc: int, inputs: int, weights: int) -> None:
        # The instruction faults on other shapes.
        depth = self.rows[weights]
        assert self.rows[acc] == self.rows[inputs]
        assert self.widths.get(inputs, ROW_BYTES) == 4 * depth
        _, input_dtype, weight_dtype = TILE_DTYPES[self.compute]
        group = 4 // ELEMENT_BYTES[input_dtype]
        sums = self._sums(acc)
        left, right = self.buffers[inputs, input_dtype], self.buffers[weights, weight_dtype]
        with T.serial(self.rows[acc]) as row, T.serial(TILE_LANES) as column:
            at = T.bind(row * TILE_LANES + column)
            with T.serial(depth) as k, T.serial(group) as element:
                x = self._widened(left[(row * TILE_ROWS + k) * group + element])
                w = self._widened(right[(k * TILE_LANES + column) * group + element])
                T.buffer_store(sums, sums[at] + x * w, [at])

    def store(self, tile: int, buffer: Any, offset: Any, stride: int) -> None:
        source = self._sums(tile)
        with T.serial(self.rows[tile]) as row, T.serial(TILE_LANES) as column:
            value = source[row * TILE_LANES + column]
            T.buffer_store(buffer, value, [offset + row * stride + column])

    def end(self) -> None:
        self.rows.clear()

    def _sums(self, tile: int) -> Any:
        return self.buffers[tile, TILE_DTYPES[self.compute][0]]

    def _widened(self, value: Any) -> Any:
        return T.cast(value, "int32") if self.compute == "int8" else widen(value, "bf16", None, 1)


def _configuration(rows: Mapping[int, int], widths: Mapping[int, int]) -> list[int]:
    """Return the 64 bytes of ldtilecfg (palette 1) as int32 words."""
    content = bytearray(ROW_BYTES)
    content[0] = 1
    for tile, count in rows.items():
        content[16 + 2 * tile] = widths.get(tile, ROW_BYTES)
        content[48 + tile] = count
    return [int.from_bytes(content[i : i + 4], "little") for i in range(0, ROW_BYTES, 4)]


def _stride_bytes(buffer: Any, stride: int) -> Any:
    return T.int64(stride * ELEMENT_BYTES[str(buffer.dtype)])


def _call(name: str, *operands: Any) -> None:
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *operands))

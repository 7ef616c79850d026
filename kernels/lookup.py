"""Table look-ups of u8 codes: a vector at a time where the processor can shuffle bytes.

AVX-512 with byte permutes (every AMX processor) holds the table in four registers. Elsewhere a
byte shuffle reads 16 entries at once, by the low four bits of the code, and gives 0 where the
code's top bit is set. So the code is lowered by 16, saturating, once per 16 entries: each step
xors in the difference of two neighbouring parts of the table, until the code turns negative; what
is left of the sum is the entry of its own part. NEON reads 64 entries at once and leaves lanes
alone whose code lies beyond them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import (
    PARALLEL_ELEMENTS,
    load,
    permute,
    shared_spans,
    splat,
    store,
    vector,
)
from mpq_compile.kernels.tier import Tier

_PART = 16
_SHUFFLE = {64: "llvm.x86.avx512.pshuf.b.512", 32: "llvm.x86.avx2.pshuf.b"}
_PERMUTE = "llvm.x86.avx512.vpermi2var.qi.512"
_TABLE = "llvm.aarch64.neon.tbx4.v16i8"

Lookup = Callable[[Any], Any]


def emit_lookup(x: Any, table: Any, o: Any, size: int, tier: Tier, threads: int) -> None:
    """Emit o[i] = table[x[i]] for ``size`` u8 codes."""
    lanes, prepare = _method(tier)
    vectors = size // lanes

    def span(start: Any, count: Any) -> None:
        # Inside each task: vectors do not pass into a parallel loop.
        look_up = prepare(table, lanes)
        with T.serial(count) as i:
            at = (start + i) * lanes
            store(o, at, lanes, look_up(load(x, at, lanes)))

    if vectors:
        shared_spans(vectors, threads if size >= PARALLEL_ELEMENTS else 1, span)
    if size % lanes:
        with T.serial(size % lanes) as i:
            at = vectors * lanes + i
            store(o, at, 1, table[T.cast(x[at], "int32")])


def _method(tier: Tier) -> tuple[int, Callable[[Any, int], Lookup]]:
    """Return the number of codes looked up at once, and the function that reads the table."""
    if tier.dot == "amx":
        return 64, _by_permutes
    if tier.dot in ("vpdpbusd", "vpmaddwd"):
        return 4 * tier.lanes, _by_shuffles
    if tier.has_sdot:
        return _PART, _by_tables
    return 1, lambda table, lanes: lambda code: table[T.cast(code, "int32")]


def _by_permutes(table: Any, lanes: int) -> Lookup:
    parts = [T.bind(load(table, lanes * part, lanes)) for part in range(4)]

    def look_up(codes: Any) -> Any:
        codes = T.bind(codes)
        dtype = vector("uint8", lanes)
        low, high = (
            T.call_llvm_pure_intrin(dtype, _PERMUTE, first, codes, second)
            for first, second in (parts[:2], parts[2:])
        )
        return T.Select(codes < splat(T.uint8(128), lanes), low, high)

    return look_up


def _by_tables(table: Any, lanes: int) -> Lookup:
    parts = [T.bind(load(table, part * _PART, _PART)) for part in range(256 // _PART)]

    def look_up(codes: Any) -> Any:
        codes = T.bind(codes)
        dtype, found = vector("uint8", lanes), splat(T.uint8(0), lanes)
        for first in range(0, len(parts), 4):
            # Codes below the first entry wrap around to beyond the last.
            index = codes - splat(T.uint8(first * _PART), lanes)
            entries = parts[first : first + 4]
            found = T.call_llvm_pure_intrin(dtype, _TABLE, found, *entries, index)
        return found

    return look_up


def _by_shuffles(table: Any, lanes: int) -> Lookup:
    repeated = [
        T.bind(permute([load(table, part * _PART, _PART)] * (lanes // _PART), range(lanes)))
        for part in range(256 // _PART)
    ]
    steps = [
        repeated[part] if part % 8 == 0 else T.bind(repeated[part] ^ repeated[part - 1])
        for part in range(256 // _PART)
    ]
    dtype = vector("uint8", lanes)

    def half(codes: Any, tables: list[Any]) -> Any:
        total = None
        for index, entries in enumerate(tables):
            codes = T.bind(codes)
            found = T.call_llvm_pure_intrin(dtype, _SHUFFLE[lanes], entries, codes)
            total = found if total is None else total ^ found
            if index + 1 < len(tables):
                sixteen = splat(T.uint8(_PART), lanes)
                codes = T.call_llvm_pure_intrin(dtype, "llvm.ssub.sat", codes, sixteen)
        return total

    def look_up(codes: Any) -> Any:
        codes = T.bind(codes)
        flipped = codes ^ splat(T.uint8(128), lanes)
        return half(codes, steps[:8]) ^ half(flipped, steps[8:])

    return look_up

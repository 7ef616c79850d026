"""Pieces of TensorIR that the generators share: vectors, fenced arithmetic, the epilogue.

All buffers are flat. Scratch accumulators are separate buffers below 1,024 bytes, which LLVM
keeps in registers; larger ones would become heap workspaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.packing import SCALAR_WORDS, SCALARS

FORMAT_DTYPE = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}
FORMAT_BYTES = {"u8": 1, "bf16": 2, "fp32": 4}

ROUNDER = 1.5 * 2**23
ROUNDER_BITS = 0x4B400000


def load(buffer: Any, offset: Any, lanes: int) -> Any:
    """Load ``lanes`` contiguous elements (a scalar when lanes is 1)."""
    return buffer[offset] if lanes == 1 else buffer[T.ramp(offset, 1, lanes)]


def store(buffer: Any, offset: Any, lanes: int, value: Any) -> None:
    """Store ``lanes`` contiguous elements."""
    T.buffer_store(buffer, value, [offset if lanes == 1 else T.ramp(offset, 1, lanes)])


def prefetch(buffer: Any, offset: Any) -> None:
    """Ask for the cache line of an element, which may lie behind the buffer's end."""
    read, all_levels, data = T.int32(0), T.int32(3), T.int32(1)
    address = buffer.access_ptr("r", offset=offset)
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, read, all_levels, data))


def splat(value: Any, lanes: int) -> Any:
    """Broadcast a scalar to ``lanes``."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def vector(dtype: str, lanes: int) -> str:
    """Spell a vector type: ``vector("int32", 16)`` is ``int32x16``."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def fenced_product(a: Any, b: Any, lanes: int) -> Any:
    """a ⊗ b, rounded to float32 before it is added to anything.

    LLVM contracts products into FMA on most targets, which changes a quarter of all results; the
    fence forbids it, so that every tier agrees with the oracle.
    """
    return fenced(a * b, lanes)


def fenced(v: Any, lanes: int) -> Any:
    """Return float32 ``v``, rounded: nothing that follows is combined or cancelled with it."""
    name = "llvm.arithmetic.fence.f32" if lanes == 1 else f"llvm.arithmetic.fence.v{lanes}f32"
    return T.call_llvm_pure_intrin(vector("float32", lanes), name, v)


def bits_to_float(word: Any, lanes: int = 1) -> Any:
    """Read int32 words as the float32 whose bits they hold."""
    return T.reinterpret(vector("float32", lanes), word)


def widen(value: Any, fmt: str, zero_point: Any, lanes: int) -> Any:
    """Return float32 (x − zp) of stored u8 codes, or bf16 / fp32 values as float32."""
    if fmt == "u8":
        integers = T.cast(value, vector("int32", lanes)) - splat(zero_point, lanes)
        return T.cast(integers, vector("float32", lanes))
    if fmt == "bf16":
        words = T.cast(value, vector("uint32", lanes))
        shifted = T.shift_left(words, splat(T.uint32(16), lanes))
        return T.reinterpret(vector("float32", lanes), shifted)
    return value


def narrow(v: Any, fmt: str, lo: Any, hi: Any, zp_out: Any, lanes: int) -> Any:
    """Clamp float32 ``v`` to [lo, hi] and convert it to the stored form of ``fmt``."""
    v = T.min(T.max(v, splat(lo, lanes)), splat(hi, lanes))
    if fmt == "fp32":
        return v
    if fmt == "bf16":
        return round_to_bf16(v, lanes)
    # Adding 1.5 · 2**23 leaves round_half_even(v) in the low bits of the sum, for |v| < 2**22: no
    # conversion, and no library call on processors that lack an instruction for rounding.
    shifted = T.reinterpret(vector("int32", lanes), v + splat(T.float32(ROUNDER), lanes))
    # The zero point is added to bytes: four times fewer than words, and they wrap alike.
    codes = T.cast(shifted, vector("uint8", lanes))
    return codes + splat(T.cast(zp_out, "uint8"), lanes)


def round_to_bf16(v: Any, lanes: int) -> Any:
    """Round float32 to bf16 (half to even), as uint16 bits."""
    bits = T.bind(T.reinterpret(vector("uint32", lanes), v))
    one = splat(T.uint32(1), lanes)
    odd = T.bitwise_and(T.shift_right(bits, splat(T.uint32(16), lanes)), one)
    rounded = bits + splat(T.uint32(0x7FFF), lanes) + odd
    return T.cast(T.shift_right(rounded, splat(T.uint32(16), lanes)), vector("uint16", lanes))


def converted(v: Any, fmt: str, record: Any, index: int, lanes: int) -> Any:
    """Return float32 ``v`` as ``fmt`` stores it, by a record of several (``pack_convert``)."""

    def word(name: str) -> Any:
        place = SCALARS.index(name)
        value = record[index * SCALAR_WORDS + place]
        return value if place < 3 else T.reinterpret("float32", value)

    product = fenced_product(v, splat(word("scale"), lanes), lanes)
    return narrow(product, fmt, word("lo"), word("hi"), word("zp_out"), lanes)


def scalar(record: Any, name: str) -> Any:
    """Read one scalar of an epilogue record; floats come back as float32."""
    index = SCALARS.index(name)
    word = record[index]
    return word if index < 3 else T.reinterpret("float32", word)


# Attributes of a finished kernel: no pass may fuse it (8: opaque) or schedule it again.
SCHEDULED = "tirx.is_scheduled"
KERNEL_ATTRS = {SCHEDULED: True, "op_pattern": 8, "tirx.noalias": True}

# Below this many elements one thread is faster than a fork and a join.
PARALLEL_ELEMENTS = 32768


def bound_scalar(record: Any, name: str) -> Any:
    """Read one scalar of a record into a variable, so that loops do not read it again."""
    return T.bind(scalar(record, name))


def shared_spans(extent: int, threads: int, body: Callable[[Any, Any], None]) -> None:
    """Emit ``body(start, count)`` for contiguous shares of [0, extent), one for each task."""
    if threads == 1 or extent == 1:
        body(0, extent)
        return
    share = -(-extent // threads)
    with T.parallel(-(-extent // share)) as task:
        body(task * share, T.min(share, extent - task * share))


def shared_range(extent: int, threads: int, body: Callable[[Any], None]) -> None:
    """Emit ``body(i)`` for i in [0, extent), in contiguous shares of ``threads`` tasks."""

    def span(start: Any, count: Any) -> None:
        with T.serial(count) as i:
            body(start + i)

    shared_spans(extent, threads, span)


def over_elements(size: int, lanes: int, threads: int, body: Callable[[Any, int], None]) -> None:
    """Emit ``body(offset, lanes)`` over ``size`` contiguous elements: full vectors, then ever
    narrower ones. ``threads`` above 1 shares the vectors out, if there are enough elements."""
    vectors, tail = divmod(size, lanes)
    if vectors:
        shares = threads if size >= PARALLEL_ELEMENTS else 1
        shared_range(vectors, shares, lambda i: body(i * lanes, lanes))
    for offset, width in pieces(tail, lanes):
        body(vectors * lanes + offset, width)


def pieces(size: int, widest: int) -> list[tuple[int, int]]:
    """Cut ``size`` into (offset, lanes) of descending powers of two, at most ``widest`` lanes."""
    cuts, offset, lanes = [], 0, widest
    while offset < size:
        if offset + lanes <= size:
            cuts.append((offset, lanes))
            offset += lanes
        else:
            lanes //= 2
    return cuts


def permute(vectors: Sequence[Any], order: Sequence[int]) -> Any:
    """Return a vector of the elements ``order`` of the concatenated ``vectors``."""
    return T.Shuffle(list(vectors), [T.int32(index) for index in order])


# Returns (value, lanes) as another buffer holds it.
Convert = Callable[[Any, int], Any]


def unchanged(value: Any, lanes: int) -> Any:
    """Return what buffers of one format have in common: the value."""
    return value


def copy_short(
    target: Any, to: Any, source: Any, at: Any, count: int, convert: Convert = unchanged
) -> None:
    """Copy a fixed ``count`` of elements in pieces of powers of two, largest first."""
    done = 0
    while done < count:
        lanes = min(64, 1 << ((count - done).bit_length() - 1))
        store(target, to + done, lanes, convert(load(source, at + done, lanes), lanes))
        done += lanes


def fill_short(target: Any, to: Any, value: Any, count: int) -> None:
    """Store a scalar ``count`` times in pieces of powers of two."""
    done = 0
    while done < count:
        lanes = min(64, 1 << ((count - done).bit_length() - 1))
        store(target, to + done, lanes, splat(value, lanes))
        done += lanes


def copy_span(
    target: Any,
    to: Any,
    source: Any,
    at: Any,
    count: int,
    lanes: int,
    convert: Convert = unchanged,
) -> None:
    """Copy a fixed ``count`` of elements, ``lanes`` at a time and the rest in short pieces."""
    done = count // lanes * lanes
    if done:
        with T.serial(count // lanes) as i:
            value = load(source, at + i * lanes, lanes)
            store(target, to + i * lanes, lanes, convert(value, lanes))
    copy_short(target, to + done, source, at + done, count - done, convert)


def fill_span(target: Any, to: Any, value: Any, count: int, lanes: int) -> None:
    """Store a scalar ``count`` times, ``lanes`` at a time and the rest in short pieces."""
    whole = count // lanes
    if whole:
        with T.serial(whole) as i:
            store(target, to + i * lanes, lanes, splat(value, lanes))
    fill_short(target, to + whole * lanes, value, count % lanes)


@contextmanager
def llvm_functions(ir: str) -> Iterator[None]:
    """Link functions written in LLVM IR into the module of the kernel; nothing for no text."""
    if not ir:
        yield
        return
    with T.attr(T.int32(0), "pragma_import_llvm", ir):
        yield


@contextmanager
def task_loop(tasks: int) -> Iterator[Any]:
    """Run ``tasks`` tasks in parallel; a single one does not fork."""
    with T.parallel(tasks) if tasks > 1 else T.serial(1) as task:
        yield task

"""Elementwise kernels: conversions, sums, products, tables and concatenation.

Every function takes flat buffers and, where it computes, an int32[16] record of runtime scalars
(``packing.pack_convert``, ``pack_add``, ``pack_multiply``). u8 results equal the functions of
``quant.reference`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.elementwise_workload import (
    AddWorkload,
    ConcatWorkload,
    ConvertWorkload,
    LutWorkload,
    MulWorkload,
    TransposeConvertWorkload,
)
from mpq_compile.kernels.emit import (
    FORMAT_BYTES,
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    bound_scalar,
    fenced_product,
    load,
    narrow,
    over_elements,
    pieces,
    shared_range,
    splat,
    store,
    widen,
)
from mpq_compile.kernels.lookup import emit_lookup
from mpq_compile.kernels.packing import SCALAR_WORDS
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.transpose import emit_transpose


@singledispatch
def generate(workload: Any, tier: Tier, threads: int) -> PrimFunc:
    """Return the function of one of the elementwise workloads.

    Arguments, all flat: conversions X, E, O; sums and products A, B, E, O; tables X, L (u8[256]),
    O; concatenation X0, …, Xn, O. E is the int32[16] record.
    """
    raise TypeError(f"no elementwise kernel for {type(workload).__name__}")


def _build(body: Callable[[], None]) -> PrimFunc:
    """Return the function whose arguments and statements ``body`` emits."""
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        body()
    return builder.get()


def _argument(name: str, size: int, fmt: str) -> Any:
    return T.arg(name, T.buffer((size,), FORMAT_DTYPE[fmt]))


def _record() -> Any:
    return T.arg("E", T.buffer((SCALAR_WORDS,), "int32"))


def _converter(record: Any, source: str, target: str) -> Callable[[Any, int], Any]:
    """Read the record; return ``convert(stored vector, lanes) -> stored vector``."""
    zp_in, zp_out, scale, lo, hi = (
        bound_scalar(record, name) for name in ("zp_in", "zp_out", "scale", "lo", "hi")
    )

    def convert(value: Any, lanes: int) -> Any:
        v = fenced_product(widen(value, source, zp_in, lanes), splat(scale, lanes), lanes)
        return narrow(v, target, lo, hi, zp_out, lanes)

    return convert


@generate.register
def _convert(workload: ConvertWorkload, tier: Tier, threads: int) -> PrimFunc:
    def body() -> None:
        x = _argument("X", workload.size, workload.source)
        record = _record()
        o = _argument("O", workload.size, workload.target)
        convert = _converter(record, workload.source, workload.target)
        over_elements(
            workload.size,
            tier.lanes,
            threads,
            lambda at, lanes: store(o, at, lanes, convert(load(x, at, lanes), lanes)),
        )

    return _build(body)


@generate.register
def _transpose_convert(workload: TransposeConvertWorkload, tier: Tier, threads: int) -> PrimFunc:
    rows, columns = workload.channels, workload.pixels
    if workload.direction == "to_nchw":
        rows, columns = columns, rows
    size = workload.batch * rows * columns

    def body() -> None:
        x = _argument("X", size, workload.source)
        record = _record()
        o = _argument("O", size, workload.target)
        convert = _converter(record, workload.source, workload.target)
        narrower = FORMAT_BYTES[workload.target] <= FORMAT_BYTES[workload.source]
        shares = threads if size >= PARALLEL_ELEMENTS else 1
        emit_transpose(x, o, (workload.batch, rows, columns), tier.lanes, shares, convert, narrower)

    return _build(body)


@generate.register
def _add(workload: AddWorkload, tier: Tier, threads: int) -> PrimFunc:
    def body() -> None:
        a = _argument("A", workload.size, workload.a)
        b = _argument("B", workload.size, workload.b)
        record = _record()
        o = _argument("O", workload.size, workload.out)
        names = ("zp_in", "zp_residual", "zp_out", "scale", "residual_scale", "lo", "hi")
        zp_a, zp_b, zp_out, ra, rb, lo, hi = (bound_scalar(record, name) for name in names)

        def step(at: Any, lanes: int) -> None:
            va = widen(load(a, at, lanes), workload.a, zp_a, lanes)
            vb = widen(load(b, at, lanes), workload.b, zp_b, lanes)
            left = fenced_product(va, splat(ra, lanes), lanes)
            right = fenced_product(vb, splat(rb, lanes), lanes)
            store(o, at, lanes, narrow(left + right, workload.out, lo, hi, zp_out, lanes))

        over_elements(workload.size, tier.lanes, threads, step)

    return _build(body)


@generate.register
def _mul(workload: MulWorkload, tier: Tier, threads: int) -> PrimFunc:
    plane = workload.pixels * workload.channels
    size = workload.batch * plane
    per_pixel = workload.broadcast == "pixel"

    def body() -> None:
        a = _argument("A", size, workload.a)
        b = _argument("B", size // workload.pixels if per_pixel else size, workload.b)
        record = _record()
        o = _argument("O", size, workload.out)
        names = ("zp_in", "zp_residual", "zp_out", "scale", "lo", "hi")
        zp_a, zp_b, zp_out, scale, lo, hi = (bound_scalar(record, name) for name in names)

        def step(at: Any, at_b: Any, lanes: int) -> None:
            va = widen(load(a, at, lanes), workload.a, zp_a, lanes)
            vb = widen(load(b, at_b, lanes), workload.b, zp_b, lanes)
            product = fenced_product(va, vb, lanes)
            v = fenced_product(product, splat(scale, lanes), lanes)
            store(o, at, lanes, narrow(v, workload.out, lo, hi, zp_out, lanes))

        def pixel(index: Any) -> None:
            row_b = T.floordiv(index, workload.pixels) * workload.channels
            row = index * workload.channels
            over_elements(
                workload.channels, tier.lanes, 1, lambda n, w: step(row + n, row_b + n, w)
            )

        if per_pixel:
            shares = threads if size >= PARALLEL_ELEMENTS else 1
            shared_range(workload.batch * workload.pixels, shares, pixel)
        else:
            over_elements(size, tier.lanes, threads, lambda at, w: step(at, at, w))

    return _build(body)


@generate.register
def _lut(workload: LutWorkload, tier: Tier, threads: int) -> PrimFunc:
    def body() -> None:
        x = _argument("X", workload.size, "u8")
        table = _argument("L", 256, "u8")
        o = _argument("O", workload.size, "u8")
        emit_lookup(x, table, o, workload.size, tier, threads)

    return _build(body)


@generate.register
def _concat(workload: ConcatWorkload, tier: Tier, threads: int) -> PrimFunc:
    total = sum(workload.channels)
    size = workload.pixels * total
    widest = 4 * tier.lanes // FORMAT_BYTES[workload.dtype]

    def body() -> None:
        sources = [
            _argument(f"X{index}", workload.pixels * channels, workload.dtype)
            for index, channels in enumerate(workload.channels)
        ]
        o = _argument("O", size, workload.dtype)

        def pixel(index: Any) -> None:
            start = 0
            for source, channels in zip(sources, workload.channels, strict=True):
                _copy(source, index * channels, o, index * total + start, channels, widest)
                start += channels

        shares = threads if size >= PARALLEL_ELEMENTS else 1
        shared_range(workload.pixels, shares, pixel)

    return _build(body)


def _copy(source: Any, at: Any, target: Any, to: Any, count: int, widest: int) -> None:
    """Emit a copy of ``count`` contiguous elements: full vectors, then ever narrower ones."""
    full = count // widest
    if full:
        with T.serial(full) as i:
            store(target, to + i * widest, widest, load(source, at + i * widest, widest))
    for offset, lanes in pieces(count % widest, widest):
        offset += full * widest
        store(target, to + offset, lanes, load(source, at + offset, lanes))

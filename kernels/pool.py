"""Average and maximum pooling over NHWC, vectorised over the channels.

The windows are runtime arguments (``packing.pack_windows``), so that padding, ceil mode, adaptive
pooling and means over H or W all share this one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.elementwise_workload import PoolWorkload
from mpq_compile.kernels.emit import (
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    bound_scalar,
    fenced_product,
    load,
    narrow,
    pieces,
    shared_range,
    splat,
    store,
    vector,
    widen,
)
from mpq_compile.kernels.packing import SCALAR_WORDS
from mpq_compile.kernels.tier import Tier

# Accumulators that one pass over a window fills: enough to hide the latency of a sum.
VECTORS = 4

Group = list[tuple[int, int]]


def generate(workload: PoolWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the pooling function of a workload.

    Arguments, all flat: X; W, the windows (int32[2 · (OH + OW)]); for averages S (float32[OH · OW])
    and E (int32[16], ``packing.pack_pool``); O. u8 results equal ``reference.avg_pool`` and
    ``reference.max_pool`` bit for bit; float sums are added in another order than PyTorch's.

    Raises:
        LoweringError: A maximum that changes the format, or an average with a dilation.
    """
    _check(workload)
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        _emit(workload, tier, threads)
    return builder.get()


def _check(workload: PoolWorkload) -> None:
    if workload.kind == "max" and workload.source != workload.out:
        raise LoweringError(
            "max pooling keeps the format of its input",
            expected=workload.source,
            found=workload.out,
            remedy="convert the result in a kernel of its own",
        )
    if workload.kind == "avg" and workload.step != (1, 1):
        raise LoweringError(
            "average pooling has no dilation", expected="step (1, 1)", found=workload.step
        )


@dataclass(frozen=True, kw_only=True)
class _Window:
    """One output pixel: where its window starts, its cells, and where it is written."""

    x: Any
    o: Any
    origin: Any
    cells_high: Any
    cells_wide: Any
    target: Any
    position: Any


def _emit(workload: PoolWorkload, tier: Tier, threads: int) -> None:
    x, windows, o, reduce = _arguments(workload)
    high, wide, channels = workload.out_height, workload.out_width, workload.channels
    plane = workload.height * workload.width * channels
    pixels_in, pixels_out = workload.height * workload.width, high * wide
    small = workload.batch * max(pixels_in, pixels_out) * channels < PARALLEL_ELEMENTS
    shares = 1 if small else threads

    def row(index: Any, channel: Any, group: Group) -> None:
        b, oh = T.floordiv(index, high), T.floormod(index, high)
        top, rows = _span(windows, oh, workload.step[0])
        with T.serial(wide) as ow:
            left, columns = _span(windows, high + ow, workload.step[1])
            origin = b * plane + (top * workload.width + left) * channels + channel
            window = _Window(
                x=x,
                o=o,
                origin=T.bind(origin),
                cells_high=rows,
                cells_wide=columns,
                target=(index * wide + ow) * channels + channel,
                position=oh * wide + ow,
            )
            reduce(window, group)

    # Many rows are shared among the threads; a single one (a global mean) by its channels.
    by_rows = workload.batch * high >= threads
    lanes = tier.lanes * (4 if workload.kind == "max" and workload.source == "u8" else 1)
    if by_rows:
        shared_range(
            workload.batch * high,
            shares,
            lambda i: _over_channels(channels, lanes, 1, lambda c, group: row(i, c, group)),
        )
        return

    def every_row(channel: Any, group: Group) -> None:
        with T.serial(workload.batch * high) as index:
            row(index, channel, group)

    _over_channels(channels, lanes, shares, every_row)


def _arguments(workload: PoolWorkload) -> tuple[Any, Any, Any, Callable[[_Window, Group], None]]:
    """Declare the arguments; return X, W, O and the function that emits one window."""
    pixels_in, pixels_out = (
        workload.height * workload.width,
        workload.out_height * workload.out_width,
    )
    outer = workload.batch * workload.channels
    x = T.arg("X", T.buffer((outer * pixels_in,), FORMAT_DTYPE[workload.source]))
    spans = 2 * (workload.out_height + workload.out_width)
    windows = T.arg("W", T.buffer((spans,), "int32"))
    if workload.kind == "max":
        o = T.arg("O", T.buffer((outer * pixels_out,), FORMAT_DTYPE[workload.out]))
        return x, windows, o, lambda window, group: _maximum(workload, window, group)
    scales = T.arg("S", T.buffer((pixels_out,), "float32"))
    record = T.arg("E", T.buffer((SCALAR_WORDS,), "int32"))
    o = T.arg("O", T.buffer((outer * pixels_out,), FORMAT_DTYPE[workload.out]))
    bounds = [bound_scalar(record, name) for name in ("zp_in", "lo", "hi", "zp_out")]
    return x, windows, o, lambda window, group: _average(workload, scales, bounds, window, group)


def _span(windows: Any, index: Any, step: int) -> tuple[Any, Any]:
    """Return the start of a window along one axis and its number of cells."""
    start = T.bind(windows[2 * index])
    return start, T.bind(T.floordiv(windows[2 * index + 1] - start + (step - 1), step))


def _over_channels(
    channels: int, lanes: int, shares: int, body: Callable[[Any, Group], None]
) -> None:
    """Emit ``body(first channel, [(offset, lanes), …])`` for full groups and for the rest."""
    width = VECTORS * lanes
    full = channels // width
    if full:
        group = [(index * lanes, lanes) for index in range(VECTORS)]
        shared_range(full, shares, lambda block: body(block * width, group))
    if channels % width:
        body(full * width, pieces(channels % width, lanes))


def _accumulate(
    workload: PoolWorkload,
    window: _Window,
    group: Group,
    start: tuple[str, Any],
    step: Callable[[Any, Any, int], Any],
) -> list[Any]:
    """Emit the loops over a window; return the accumulators of the group's vectors.

    ``start`` is (dtype, initial value); ``step(acc, stored, lanes)`` returns the next value.
    """
    dtype, initial = start
    sums = [T.sblock_alloc_buffer((lanes,), dtype) for _, lanes in group]
    for acc, (_, lanes) in zip(sums, group, strict=True):
        store(acc, 0, lanes, splat(initial, lanes))
    across = workload.step[1] * workload.channels
    down = workload.step[0] * workload.width * workload.channels
    with T.serial(window.cells_high) as i, T.serial(window.cells_wide) as j:
        at = window.origin + i * down + j * across
        for acc, (offset, lanes) in zip(sums, group, strict=True):
            stored = load(window.x, at + offset, lanes)
            store(acc, 0, lanes, step(load(acc, 0, lanes), stored, lanes))
    return [load(acc, 0, lanes) for acc, (_, lanes) in zip(sums, group, strict=True)]


def _average(
    workload: PoolWorkload, scales: Any, bounds: Sequence[Any], window: _Window, group: Group
) -> None:
    zp_in, lo, hi, zp_out = bounds

    def add(acc: Any, stored: Any, lanes: int) -> Any:
        if workload.source == "u8":
            return acc + T.cast(stored, vector("int32", lanes))
        return acc + widen(stored, workload.source, zp_in, lanes)

    with T.sblock("window"):
        T.reads()
        T.writes()
        start: tuple[str, Any] = ("float32", T.float32(0))
        if workload.source == "u8":
            start = ("int32", -zp_in * window.cells_high * window.cells_wide)
        sums = _accumulate(workload, window, group, start, add)
        scale = T.bind(scales[window.position])
        for value, (offset, lanes) in zip(sums, group, strict=True):
            total = T.cast(value, vector("float32", lanes))
            v = fenced_product(total, splat(scale, lanes), lanes)
            stored = narrow(v, workload.out, lo, hi, zp_out, lanes)
            store(window.o, window.target + offset, lanes, stored)


def _maximum(workload: PoolWorkload, window: _Window, group: Group) -> None:
    fmt = workload.source

    def greater(acc: Any, stored: Any, lanes: int) -> Any:
        return T.max(acc, stored if fmt == "u8" else widen(stored, fmt, 0, lanes))

    lowest = T.uint8(0) if fmt == "u8" else T.float32(float("-inf"))
    with T.sblock("window"):
        T.reads()
        T.writes()
        start = (FORMAT_DTYPE["u8" if fmt == "u8" else "fp32"], lowest)
        for value, (offset, lanes) in zip(
            _accumulate(workload, window, group, start, greater), group, strict=True
        ):
            stored = value
            if fmt == "bf16":
                # Every value was a bf16 already: dropping the low half is exact.
                words = T.reinterpret(vector("uint32", lanes), value)
                words = T.shift_right(words, splat(T.uint32(16), lanes))
                stored = T.cast(words, vector("uint16", lanes))
            store(window.o, window.target + offset, lanes, stored)

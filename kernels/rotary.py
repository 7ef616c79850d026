"""Rotary position embeddings of float32 rows: both halves of a row turn in one pass.

``main(X, C, S, O)`` writes o1 = x1·c1 − x2·s1 and o2 = x2·c2 + x1·s2 of the halves of each row.
Results agree with PyTorch's float32 to rounding.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.attention_workload import Layout
from mpq_compile.kernels.elementwise_workload import RotaryWorkload
from mpq_compile.kernels.emit import (
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    load,
    pieces,
    shared_range,
    store,
)
from mpq_compile.kernels.tier import Tier


def generate(workload: RotaryWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc of a workload; all buffers flat."""
    rows = workload.batch * workload.heads * workload.rows
    shares = threads if rows * workload.depth >= PARALLEL_ELEMENTS else 1
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        places = (workload.x, workload.cos, workload.sin)
        buffers = [
            T.arg(name, T.buffer((place.size,), "float32"))
            for name, place in zip("XCS", places, strict=True)
        ]
        out = T.arg("O", T.buffer((rows * workload.depth,), "float32"))

        def row(index: Any) -> None:
            starts = [_start(workload, place, index) for place in places]
            _turn(workload.depth // 2, tier.lanes, buffers, starts, out, index * workload.depth)

        with T.sblock("root"):
            shared_range(rows, shares, row)
    return builder.get()


def _start(workload: RotaryWorkload, layout: Layout, index: Any) -> Any:
    """Return where row ``index`` of [batch · heads · rows] starts."""
    row = T.floormod(index, workload.rows)
    head = T.floormod(T.floordiv(index, workload.rows), workload.heads)
    batch = T.floordiv(index, workload.rows * workload.heads)
    steps = zip((batch, head, row), layout.strides, strict=True)
    return T.bind(layout.offset + sum((place * step for place, step in steps), T.int32(0)))


def _turn(half: int, lanes: int, buffers: Any, starts: Any, out: Any, to: Any) -> None:
    to = T.bind(to)
    for at, width in pieces(half, lanes):
        low, high = (
            [T.bind(load(b, s + at + shift, width)) for b, s in zip(buffers, starts, strict=True)]
            for shift in (0, half)
        )
        (x1, c1, s1), (x2, c2, s2) = low, high
        store(out, to + at, width, x1 * c1 - x2 * s1)
        store(out, to + half + at, width, x2 * c2 + x1 * s2)

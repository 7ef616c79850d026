"""Rows written into a tensor at positions known at run time: a step of a KV cache.

In place, ``main(R, P, C)`` changes C; otherwise ``main(R, P, C, O)`` writes the changed tensor to
O. Positions outside the tensor are moved to its ends: what they name is not read or written.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.elementwise_workload import WriteRowsWorkload
from mpq_compile.kernels.emit import KERNEL_ATTRS, PARALLEL_ELEMENTS, copy_span, shared_range
from mpq_compile.kernels.tier import Tier


def generate(workload: WriteRowsWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc of a workload; all buffers flat, float32 but for the int64 positions."""
    slab = workload.size * workload.inner
    touched = workload.rows * workload.inner + (0 if workload.in_place else slab)
    shares = threads if workload.outer * touched >= PARALLEL_ELEMENTS else 1
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        rows = T.arg("R", T.buffer((workload.source_size,), "float32"))
        positions = T.arg("P", T.buffer((workload.rows,), "int64"))
        cache = T.arg("C", T.buffer((workload.outer * slab,), "float32"))
        out = cache
        if not workload.in_place:
            out = T.arg("O", T.buffer((workload.outer * slab,), "float32"))

        def write(index: Any) -> None:
            start = T.bind(index * slab)
            if not workload.in_place:
                copy_span(out, start, cache, start, slab, tier.lanes)
            source = T.bind(workload.source_offset + index * workload.source_strides[0])
            with T.serial(workload.rows) as row:
                place = T.bind(_inside(positions[row], workload.size) * workload.inner)
                at = source + row * workload.source_strides[1]
                copy_span(out, start + place, rows, at, workload.inner, tier.lanes)

        with T.sblock("root"):
            shared_range(workload.outer, shares, write)
    return builder.get()


def _inside(position: Any, size: int) -> Any:
    lowest, highest = T.int64(0), T.int64(size - 1)
    return T.cast(T.min(T.max(position, lowest), highest), "int32")

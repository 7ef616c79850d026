"""Embedding lookup: rows of a packed table, gathered and dequantized in one pass.

Codes become float32 exactly and meet one product with the scale of their row or group, so that the
result equals ``quant.reference.embedding`` bit for bit. A number outside the table reads the row
at its nearer end: memory that is not the table's is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.embedding_workload import EmbeddingWorkload
from mpq_compile.kernels.emit import (
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    fenced_product,
    load,
    over_elements,
    shared_range,
    splat,
    store,
    vector,
    widen,
)
from mpq_compile.kernels.tier import Tier


def generate(workload: EmbeddingWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc ``main(I, W, [S], O)``, all flat.

    I are the numbers, W the table of ``pack_table``, S float32 scales [rows · groups] of integer
    tables, O float32 [tokens · width].
    """
    cells = workload.tokens * workload.width
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        numbers = T.arg("I", T.buffer((workload.tokens,), workload.index))
        table = T.arg("W", T.buffer((workload.table_size,), workload.table_dtype))
        scales = None
        if workload.compute == "int":
            scales = T.arg("S", T.buffer((workload.rows * workload.groups,), "float32"))
        output = T.arg("O", T.buffer((cells,), "float32"))
        lookup = _Lookup(workload, tier.lanes, table, scales, output)

        def token(index: Any) -> None:
            asked = T.max(numbers[index], T.cast(0, workload.index))
            row = T.min(asked, T.cast(workload.rows - 1, workload.index))
            lookup.row(T.bind(T.cast(row, "int32")), T.bind(index * workload.width))

        with T.sblock("root"):
            if workload.tokens == 1:  # a loop all the same: what it binds stays where it is bound
                with T.serial(1) as only:
                    token(only)
            else:
                shared_range(workload.tokens, threads if cells >= PARALLEL_ELEMENTS else 1, token)
    return builder.get()


@dataclass(frozen=True)
class _Lookup:
    workload: EmbeddingWorkload
    lanes: int
    table: Any
    scales: Any
    output: Any

    def row(self, row: Any, out: Any) -> None:
        """Emit the row of one token; ``out`` is where its values go."""
        workload = self.workload
        if workload.compute != "int":
            self._floats(row, out)
            return
        for group in range(workload.groups):
            scale = T.bind(self.scales[row * workload.groups + group])
            start = T.bind(row * workload.width + group * workload.group)
            to = T.bind(out + group * workload.group)
            (self._nibbles if workload.is_packed else self._bytes)(start, to, scale)

    def _floats(self, row: Any, out: Any) -> None:
        start = T.bind(row * self.workload.width)

        def step(at: Any, lanes: int) -> None:
            value = load(self.table, start + at, lanes)
            store(self.output, out + at, lanes, widen(value, self.workload.compute, 0, lanes))

        over_elements(self.workload.width, self.lanes, 1, step)

    def _bytes(self, start: Any, out: Any, scale: Any) -> None:
        def step(at: Any, lanes: int) -> None:
            codes = T.cast(load(self.table, start + at, lanes), vector("int32", lanes))
            self._store(out + at, codes, scale, lanes)

        over_elements(self.workload.group, self.lanes, 1, step)

    def _nibbles(self, start: Any, out: Any, scale: Any) -> None:
        half = self.workload.group // 2
        place = T.bind(T.floordiv(start, 2))

        def step(at: Any, lanes: int) -> None:
            pair = T.cast(load(self.table, place + at, lanes), vector("int32", lanes))
            pair = T.bind(pair)
            for number, up in enumerate((28, 24)):  # to the top of the word, and down with the sign
                codes = T.shift_left(pair, splat(T.int32(up), lanes))
                codes = T.shift_right(codes, splat(T.int32(28), lanes))
                self._store(out + number * half + at, codes, scale, lanes)

        over_elements(half, self.lanes, 1, step)

    def _store(self, at: Any, codes: Any, scale: Any, lanes: int) -> None:
        value = T.cast(codes, vector("float32", lanes))
        store(self.output, at, lanes, fenced_product(value, splat(scale, lanes), lanes))

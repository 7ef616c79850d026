"""A step of a recurrent cell on float32 rows: gates, and the states that they make.

States agree with PyTorch's float32 to a few units in the last place; conversions of the hidden one
are those of ``quant.reference.convert``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.elementwise_workload import RecurrentStepWorkload
from mpq_compile.kernels.emit import (
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    converted,
    load,
    over_elements,
    shared_range,
    store,
)
from mpq_compile.kernels.packing import SCALAR_WORDS
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.vector_math import sigmoid, tanh


def generate(workload: RecurrentStepWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return ``main(I, [O], [S], E, H0, …, [D])``, all flat.

    I and O are the products of input and hidden state, S the state before. E holds int32[16]
    records: the element of I at which the step starts, so that all steps share one function, and
    one for each format of the hidden state (``packing.pack_convert``), H0, …; D is the cell state
    of an LSTM.
    """
    rows, width, gates = workload.rows, workload.hidden, workload.gates
    size = rows * width
    shares = threads if size >= PARALLEL_ELEMENTS else 1
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        inner = _argument("I", workload.inner_size)
        repeats = {"each": rows, "shared": 1, "none": 0}[workload.outer]
        outer = _argument("O", repeats * gates * width) if repeats else None
        before = _argument("S", size) if workload.carried else None
        record = _argument("E", (1 + len(workload.outputs)) * SCALAR_WORDS, "int32")
        hidden = [
            _argument(f"H{index}", size, FORMAT_DTYPE[fmt])
            for index, fmt in enumerate(workload.outputs)
        ]
        after = _argument("D", size) if workload.kind == "lstm" else None

        def element(row: Any, at: Any) -> Any:
            """Return the hidden state; store the cell's."""
            start = record[0] + row * workload.inner_stride + at
            of_input = [T.bind(inner[start + gate * width]) for gate in range(gates)]
            of_state = None
            if outer is not None:
                other = (gates * row * width if repeats > 1 else 0) + at
                of_state = [T.bind(outer[other + gate * width]) for gate in range(gates)]
            to = row * width + at
            state = None if before is None else T.bind(before[to])
            if after is None:
                return _gru(of_input, of_state, state)
            cell, value = _lstm(of_input, of_state, state)
            T.buffer_store(after, cell, [to])
            return value

        def vector(row: Any, at: Any, lanes: int) -> None:
            values = T.alloc_buffer((lanes,), "float32")
            with T.vectorized(lanes) as lane:
                T.buffer_store(values, element(row, at + lane), [lane])
            v = T.bind(load(values, 0, lanes))
            for index, fmt in enumerate(workload.outputs):
                store(
                    hidden[index],
                    row * width + at,
                    lanes,
                    converted(v, fmt, record, index + 1, lanes),
                )

        def one_row(row: Any) -> None:
            over_elements(width, tier.lanes, 1, lambda at, lanes: vector(row, at, lanes))

        with T.sblock("root"):
            shared_range(rows, shares, one_row)
    return builder.get()


def _argument(name: str, size: int, dtype: str = "float32") -> Any:
    return T.arg(name, T.buffer((size,), dtype))


def _lstm(inner: Sequence[Any], outer: Sequence[Any] | None, cell: Any) -> tuple[Any, Any]:
    """Return cell and hidden state."""
    i, f, g, o = (
        inner if outer is None else (T.bind(a + b) for a, b in zip(inner, outer, strict=True))
    )
    new = sigmoid(i) * tanh(g)
    new = T.bind(new if cell is None else sigmoid(f) * cell + new)
    return new, sigmoid(o) * tanh(new)


def _gru(inner: Sequence[Any], outer: Sequence[Any] | None, hidden: Any) -> Any:
    r, z, n = inner
    if outer is not None:
        n = n + sigmoid(T.bind(r + outer[0])) * outer[2]
        z = z + outer[1]
    z, n = T.bind(sigmoid(T.bind(z))), T.bind(tanh(T.bind(n)))
    return n - z * n if hidden is None else n + z * (hidden - n)

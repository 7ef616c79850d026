"""Steps of recurrent layers on float32 rows: gates, and the states that they make.

``lstm`` is ``main(G, C, H, D)``: gates and cell state → hidden and cell state. ``gru`` is
``main(I, O, H, D)``: products of input and hidden state, hidden state → hidden state. Operands that
are zero are left out. Results agree with PyTorch's float32 to a few units in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels.elementwise_workload import GruStepWorkload, LstmStepWorkload
from mpq_compile.kernels.emit import (
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    over_elements,
    shared_range,
)
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.vector_math import sigmoid, tanh

Workload = LstmStepWorkload | GruStepWorkload


def lstm(workload: LstmStepWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc of a step of an LSTM; all buffers flat."""
    size, width = workload.rows * workload.hidden, workload.hidden

    def body() -> Callable[[Any, Any], None]:
        gates = _argument("G", 4 * size)
        before = _argument("C", size) if workload.carried else None
        hidden, cell = _argument("H", size), _argument("D", size)

        def step(row: Any, at: Any) -> None:
            i, f, g, o = (T.bind(gates[(4 * row + gate) * width + at]) for gate in range(4))
            to, new = row * width + at, sigmoid(i) * tanh(g)
            if before is not None:
                new = sigmoid(f) * before[to] + new
            new = T.bind(new)
            T.buffer_store(cell, new, [to])
            T.buffer_store(hidden, sigmoid(o) * tanh(new), [to])

        return step

    return _build(workload, tier, threads, body)


def gru(workload: GruStepWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc of a step of a GRU; all buffers flat."""
    rows, width = workload.rows, workload.hidden

    def body() -> Callable[[Any, Any], None]:
        inner = _argument("I", workload.inner.size)
        repeats = {"each": rows, "shared": 1, "none": 0}[workload.outer]
        outer = _argument("O", repeats * 3 * width) if repeats else None
        before = _argument("H", rows * width) if workload.carried else None
        hidden = _argument("D", rows * width)

        def step(row: Any, at: Any) -> None:
            start = workload.inner.offset + row * workload.inner.strides[2] + at
            r, z, n = (inner[start + gate * width] for gate in range(3))
            if outer is not None:
                other = (3 * row * width if repeats > 1 else 0) + at
                more = [outer[other + gate * width] for gate in range(3)]
                n = n + sigmoid(T.bind(r + more[0])) * more[2]
                z = z + more[1]
            z, n = T.bind(sigmoid(T.bind(z))), T.bind(tanh(T.bind(n)))
            to = row * width + at
            mixed = n - z * n if before is None else n + z * (before[to] - n)
            T.buffer_store(hidden, mixed, [to])

        return step

    return _build(workload, tier, threads, body)


def _argument(name: str, size: int) -> Any:
    return T.arg(name, T.buffer((size,), "float32"))


def _build(
    workload: Workload,
    tier: Tier,
    threads: int,
    body: Callable[[], Callable[[Any, Any], None]],
) -> PrimFunc:
    """Return the function whose arguments ``body`` declares; it returns the step of a cell."""
    shares = threads if workload.rows * workload.hidden >= PARALLEL_ELEMENTS else 1
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        step = body()

        def row(index: Any) -> None:
            def vector(at: Any, lanes: int) -> None:
                with T.vectorized(lanes) as lane:
                    step(index, at + lane)

            over_elements(workload.hidden, tier.lanes, 1, vector)

        with T.sblock("root"):
            shared_range(workload.rows, shares, row)
    return builder.get()

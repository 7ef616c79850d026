"""Quantization of float rows at run time: the input of dynamic linear layers.

The largest magnitude of a row is exact in whatever order it is found, so that codes and scales
equal ``quant.reference.quantize_rows`` bit for bit.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.kernels.elementwise_workload import QuantizeRowsWorkload
from mpq_compile.kernels.emit import (
    KERNEL_ATTRS,
    PARALLEL_ELEMENTS,
    fenced_product,
    load,
    narrow,
    over_elements,
    shared_range,
    splat,
    store,
)
from mpq_compile.kernels.tier import Tier
from mpq_compile.quant.multipliers import ROW_PEAK, ROW_UNIT, ROW_ZERO_POINT

_LIMIT = 127.0


def generate(workload: QuantizeRowsWorkload, tier: Tier, threads: int) -> Any:
    """Return the PrimFunc ``main(X, O, S)``: float32 rows to u8 codes and float32 scales."""
    rows, features = workload.rows, workload.features
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        x = T.arg("X", T.buffer((rows * features,), "float32"))
        codes = T.arg("O", T.buffer((rows * features,), "uint8"))
        scales = T.arg("S", T.buffer((rows,), "float32"))

        def row(index: Any) -> None:
            start = T.bind(index * features)
            peak = T.bind(_peak(x, start, features, tier.lanes))
            store(scales, index, 1, peak * T.float32(ROW_UNIT))
            inverse = T.bind(T.float32(_LIMIT) / peak)
            _write_codes(x, codes, start, features, inverse, tier.lanes)

        # Relax looks for reshapes among functions of one input, and expects a block there.
        with T.sblock("root"):
            if rows == 1:  # a loop all the same: what it binds stays where it is bound
                with T.serial(1) as only:
                    row(only)
            else:
                shared_range(rows, threads if rows * features >= PARALLEL_ELEMENTS else 1, row)
    return builder.get()


def _peak(x: Any, start: Any, features: int, lanes: int) -> Any:
    """Emit the largest magnitude of a row, at least ``ROW_PEAK``."""
    largest = T.alloc_buffer((1,), "float32")
    store(largest, 0, 1, T.float32(ROW_PEAK))
    if features < lanes:
        with T.serial(features) as i:
            store(largest, 0, 1, T.max(largest[0], _magnitude(x[start + i], 1)))
        return largest[0]
    widest = T.alloc_buffer((lanes,), "float32")
    store(widest, 0, lanes, splat(T.float32(0), lanes))
    # The last vector may overlap the one before it: a maximum does not mind.
    with T.serial(-(-features // lanes)) as i:
        at = T.min(i * lanes, features - lanes)
        magnitude = _magnitude(load(x, start + at, lanes), lanes)
        store(widest, 0, lanes, T.max(load(widest, 0, lanes), magnitude))
    with T.serial(lanes) as lane:
        store(largest, 0, 1, T.max(largest[0], widest[lane]))
    return largest[0]


def _magnitude(value: Any, lanes: int) -> Any:
    value = T.bind(value)
    return T.max(value, splat(T.float32(0), lanes) - value)


def _write_codes(x: Any, codes: Any, start: Any, features: int, inverse: Any, lanes: int) -> None:
    """Emit u8(round(clamp(x ⊗ inverse)) + 128) of a row."""
    lo, hi, zero_point = T.float32(-_LIMIT), T.float32(_LIMIT), T.int32(ROW_ZERO_POINT)

    def step(at: Any, width: int) -> None:
        v = fenced_product(load(x, start + at, width), splat(inverse, width), width)
        store(codes, start + at, width, narrow(v, "u8", lo, hi, zero_point, width))

    over_elements(features, lanes, 1, step)

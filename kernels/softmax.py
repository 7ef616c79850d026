"""Weights of softmax: 2**z of whole vectors, rounded to the format in which they multiply values.

The codes of integer attention equal ``quant.attention.exp2_codes`` bit for bit: every product is
fenced. Float weights are within their format's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.emit import (
    ROUNDER,
    ROUNDER_BITS,
    fenced,
    fenced_product,
    permute,
    round_to_bf16,
    splat,
    vector,
    widen,
)
from mpq_compile.quant import exponential

# z of 16 lanes -> (weights as stored, the same weights as they are summed).
Weigh = Callable[[Any, int], tuple[Any, Any]]


def codes(z: Any, lanes: int) -> tuple[Any, Any]:
    """round_half_even(255 · 2**z) as u8, and as int32."""
    z = T.max(z, splat(T.float32(exponential.LOWEST_CODE), lanes))
    value = _exp2(z, exponential.CODES, lanes, lambda a, b: fenced_product(a, b, lanes))
    bits = T.reinterpret(vector("int32", lanes), value + splat(T.float32(ROUNDER), lanes))
    whole = T.bind(bits - splat(T.int32(ROUNDER_BITS), lanes))
    return T.cast(whole, vector("uint8", lanes)), whole


def bf16_weights(z: Any, lanes: int) -> tuple[Any, Any]:
    """2**z rounded to bf16, as bits, and as float32."""
    stored = T.bind(round_to_bf16(_float_exp2(z, exponential.BF16, lanes), lanes))
    return stored, widen(stored, "bf16", None, lanes)


def fp32_weights(z: Any, lanes: int) -> tuple[Any, Any]:
    """2**z as float32, twice."""
    value = T.bind(_float_exp2(z, exponential.FP32, lanes))
    return value, value


WEIGHTS: dict[str, Weigh] = {"int8": codes, "bf16": bf16_weights, "fp32": fp32_weights}


def reduce_lanes(x: Any, combine: Callable[[Any, Any], Any], lanes: int) -> Any:
    """Return the combination of all lanes, in every lane."""
    x, distance = T.bind(x), lanes // 2
    while distance:
        turned = permute([x], [(lane + distance) % lanes for lane in range(lanes)])
        x, distance = T.bind(combine(x, turned)), distance // 2
    return x


def _float_exp2(z: Any, coefficients: Sequence[float], lanes: int) -> Any:
    lowest = splat(T.float32(exponential.LOWEST_FLOAT), lanes)
    value = _exp2(T.bind(T.max(z, lowest)), coefficients, lanes, lambda a, b: a * b)
    return T.Select(z < lowest, splat(T.float32(0), lanes), value)


def _exp2(
    z: Any, coefficients: Sequence[float], lanes: int, product: Callable[[Any, Any], Any]
) -> Any:
    """2**n · polynomial(z − n) with n = round_half_even(z), which a sum leaves in its low bits."""
    z = T.bind(z)
    rounder = splat(T.float32(ROUNDER), lanes)
    shifted = T.bind(fenced(z + rounder, lanes))
    f = T.bind(z - (shifted - rounder))
    value = splat(T.float32(coefficients[0]), lanes)
    for coefficient in coefficients[1:]:
        value = product(value, f) + splat(T.float32(coefficient), lanes)
    integers = vector("int32", lanes)
    exponent = T.shift_left(T.reinterpret(integers, shifted), splat(T.int32(23), lanes))
    return T.reinterpret(vector("float32", lanes), T.reinterpret(integers, value) + exponent)

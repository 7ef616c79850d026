"""exp, tanh, erf and the logistic function as arithmetic that vectorises.

LLVM has no vector form of these and calls the C library for every element. The approximations
below are within a few units in the last place of float32. An argument that is NaN gives a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from mpq_compile.kernels.access import call_name
from mpq_compile.kernels.emit import ROUNDER, ROUNDER_BITS

# Cephes expf: exp(r) − 1 − r over r², for |r| ≤ ln(2) / 2, highest power first.
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LOG2_E = 1.44269504088896341
_EXP_LOWEST, _EXP_HIGHEST = -87.33654, 88.37626
# ln(2) in two parts, so that n · ln(2) is exact to float32.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4

# Rational approximations of Eigen: odd numerator and even denominator in x², highest power first.
_TANH_LIMIT = 7.90531110763549805
_TANH_ABOVE = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_BELOW = (
    1.19825839466702e-06,
    1.18534705686654e-04,
    2.26843463243900e-03,
    4.89352518554385e-03,
)
_ERF_LIMIT = 4.0
_ERF_ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)

# The formulas repeat their argument: longer ones would grow out of hand.
_LONGEST_ARGUMENT = 300


def with_vector_math(func: PrimFunc) -> PrimFunc:
    """Return ``func`` with its float32 calls replaced by arithmetic."""

    def replace(call: ir.Call) -> Any:
        formula = _FORMULAS.get(call_name(call))
        if formula is None or str(call.ty) != _FLOAT32 or _nodes(call) > _LONGEST_ARGUMENT:
            return call
        return formula(call.args[0])

    return tvm_ffi.structural_map(func, (ir.Call, replace))


def exp(x: Any) -> Any:
    """e**x = 2**n · e**r with n = round(x / ln 2); 0 and ∞ outside float32's range."""
    inside = T.min(T.max(x, T.float32(_EXP_LOWEST)), T.float32(_EXP_HIGHEST))
    # The sum holds round(x / ln 2) in its low bits: rounding is a library call on some processors.
    whole = T.reinterpret("int32", inside * T.float32(_LOG2_E) + T.float32(ROUNDER))
    whole = whole - T.int32(ROUNDER_BITS)
    n = T.cast(whole, "float32")
    r = inside - n * T.float32(_LN2_HIGH) - n * T.float32(_LN2_LOW)
    mantissa = _polynomial(_EXP, r) * (r * r) + r + T.float32(1)
    exponent = T.shift_left(whole + T.int32(127), T.int32(23))
    value = mantissa * T.reinterpret("float32", exponent)
    value = T.Select(x < T.float32(_EXP_LOWEST), T.float32(0), value)
    return T.Select(x > T.float32(_EXP_HIGHEST), T.float32(float("inf")), value)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return _rational(x, _TANH_LIMIT, _TANH_ABOVE, _TANH_BELOW)


def erf(x: Any) -> Any:
    """Error function."""
    return _rational(x, _ERF_LIMIT, _ERF_ABOVE, _ERF_BELOW)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e**−x)."""
    return T.float32(1) / (T.float32(1) + exp(T.float32(0) - x))


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    value = T.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + T.float32(coefficient)
    return value


def _rational(x: Any, limit: float, above: Sequence[float], below: Sequence[float]) -> Any:
    x = T.min(T.max(x, T.float32(-limit)), T.float32(limit))
    square = x * x
    return x * _polynomial(above, square) / _polynomial(below, square)


def _nodes(expression: Any) -> int:
    """Return the number of nodes of an expression, seen as a tree."""
    count = 0

    def visit(_: Any) -> None:
        nonlocal count
        count += 1

    tvm_ffi.structural_walk(expression, (ir.Expr, visit))
    return count


_FORMULAS = {"exp": exp, "tanh": tanh, "erf": erf, "sigmoid": sigmoid}
_FLOAT32 = str(tirx.Var("x", "float32").ty)

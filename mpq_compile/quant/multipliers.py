"""Epilogue factors, computed in float64 and rounded once. NumPy only.

The materialized graph and the loader of an artifact both call these, so that the oracle and the
device hold the same float32 bits.
"""

from __future__ import annotations

import numpy as np

from mpq_compile.types import QParams

# Codes of dynamic rows lie symmetrically about the middle code. Rows of smaller magnitude than the
# peak below count as zeros, so that the reciprocal stays finite.
ROW_ZERO_POINT = 128
ROW_UNIT = float(np.float32(1 / 127))
ROW_PEAK = 2.0**-100


def f32(value: float) -> float:
    """Round a Python float to float32 and widen it again."""
    return float(np.float32(value))


def channel_multipliers(
    weight_scale: np.ndarray, bias: np.ndarray, input_scale: float, output_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 (S, B) of v = f32(acc) ⊗ S ⊕ B in units of the output.

    Args:
        weight_scale: float32 [N] or [N, groups]; ones for float weights.
        bias: float32 [N]; zeros where there is none.
        input_scale: Scale of the input's codes; 1.0 for float input.
        output_scale: Scale of the output's codes; 1.0 for float output.
    """
    scale = weight_scale.astype(np.float64) * input_scale / output_scale
    return scale.astype(np.float32), (bias.astype(np.float64) / output_scale).astype(np.float32)


def output_bounds(
    lo: float, hi: float, output_scale: float, zero_point: int, qmax: int
) -> tuple[float, float]:
    """Return the clamp [lo, hi] of an activation in output units, cut to the codes' range."""
    low, high = -zero_point, qmax - zero_point
    return max(f32(lo / output_scale), low), min(f32(hi / output_scale), high)


def scale_of(qparams: QParams | None) -> float:
    """Return the scale of a tensor; 1.0 for a float tensor (no qparams)."""
    return 1.0 if qparams is None else qparams.scale


def zero_point_of(qparams: QParams | None) -> int:
    """Return the zero point of a tensor; 0 for a float tensor (no qparams)."""
    return 0 if qparams is None else qparams.zero_point


def bounds_of(
    qparams: QParams | None, lo: float = float("-inf"), hi: float = float("inf")
) -> tuple[float, float]:
    """Return the clamp of a tensor's codes for an activation's [lo, hi] in real units."""
    if qparams is None:
        return f32(lo), f32(hi)
    return output_bounds(lo, hi, qparams.scale, qparams.zero_point, qparams.spec.qmax)

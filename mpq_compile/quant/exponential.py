"""2**f for |f| ≤ 1/2 as polynomials, which the oracle and the kernels evaluate alike.

Coefficients by Remez-like reweighted least squares, highest power first, the last one exact, so
that 2**0 is 1. Imports nothing: kernels and PyTorch share it.
"""

from __future__ import annotations

LOG2_E = 1.44269504088896341

# Relative error 1.0e-4, times 255: a softmax weight rounded to eight bits is off by 0.03 codes.
CODES = (
    255 * 0.0550089031457901,
    255 * 0.2422109693288803,
    255 * 0.693282961845398,
    255.0,
)
# Relative error 2.8e-6, where a weight is rounded to bf16.
BF16 = (
    0.009582851082086563,
    0.05590642988681793,
    0.24024099111557007,
    0.6931241750717163,
    1.0,
)
# Relative error 2e-9.
FP32 = (
    0.00015353360504377633,
    0.0013398875016719103,
    0.00961843691766262,
    0.055503323674201965,
    0.24022647738456726,
    0.6931471824645996,
    1.0,
)

# 255 · 2**z rounds to zero from here down; the exponent of a float32 holds it with room to spare.
LOWEST_CODE = -30.0
# Below this, 2**z is no normal float32: kernels return zero.
LOWEST_FLOAT = -126.0

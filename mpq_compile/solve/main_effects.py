"""An additive estimate of a black box from the points evaluated so far.

[derived] A repair needs to know which bit costs least, and asking the black box would take an
evaluation for every variable and step. So the evaluations that are there are explained by a sum of
main effects, f(b) ≈ m + Σ_i Σ_(k ≤ b_i) e_ik, where e_ik is what level k of variable i adds to
level k − 1. The fit is a ridge regression in which good points count most: the estimate is to be
right near the best.
"""

from __future__ import annotations

import numpy as np

from mpq_compile.solve.tables import Bools, Floats, Ints

# Relative size of the ridge, and how fast the weight of a point falls with its distance from the
# best in units of the median's.
RIDGE = 1e-4
SHARPNESS = 1.0


def main_effects(levels: Ints, values: Floats, allowed: Bools) -> Floats:
    """Return an estimate (G, C) of the loss that each level of each variable adds.

    Args:
        levels: (N, G) points.
        values: (N,) the black box there; those that are not finite are left out.
        allowed: (G, C) which levels there are.
    """
    finite = np.isfinite(values)
    levels, values = levels[finite], values[finite]
    count, width = allowed.shape
    if len(values) < 2 or np.ptp(values) == 0:
        # Nothing is known: each level is worth the same.
        return -np.broadcast_to(np.arange(width, dtype=float), allowed.shape).copy()
    steps = levels[:, :, None] >= np.arange(1, width)
    features = steps.reshape(len(levels), -1).astype(float)
    excess = values - values.min()
    weight = 1.0 / (1.0 + SHARPNESS * excess / np.median(excess[excess > 0]))
    effects = _ridge(features, values, np.square(weight))
    table = np.zeros((count, width))
    table[:, 1:] = np.cumsum(effects.reshape(count, -1), axis=1)
    return table


def _ridge(features: Floats, values: Floats, weight: Floats) -> Floats:
    """Return weighted ridge coefficients around weighted means; in the smaller of both forms."""
    weight = weight / weight.sum()
    root = np.sqrt(weight)[:, None]
    x = (features - weight @ features) * root
    y = (values - weight @ values) * root[:, 0]
    points, unknown = x.shape
    penalty = RIDGE * max(float(np.square(x).sum()) / unknown, 1e-300)
    if points < unknown:
        return x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(points), y)
    return np.linalg.solve(x.T @ x + penalty * np.eye(unknown), x.T @ y)

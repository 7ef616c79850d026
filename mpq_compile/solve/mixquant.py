"""MixQuant: per layer the fewest bits whose round-off error stays near that of 8 bits (method 3).

Kloberdanz & Le, "MixQuant: Mixed Precision Quantization with a Bit-width Optimization Search",
arXiv 2309.17341 [source]:

    b_l = min { b : QE_l(b) ≤ QEM · QE_l(8) }

Taken literally, its "argmin" returns 8 bits always; the prose gives the rule above. Under a budget
[derived] the solver takes the smallest multiplier QEM with which the rule's bits fit.

The published choices (6 and 7 bits at QEM = 2) do not follow from the mean square error, whose
ratio to 8 bits is about 4, 16 and 66 at 7, 6 and 5 bits: with it QEM = 2 leaves all layers at 8.
The mean relative error |w − ŵ| / |w| gives 6 and 7 bits, so ``relative`` reproduces the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpq_compile.errors import PlanError
from mpq_compile.solve.feasible import prepare
from mpq_compile.solve.last_meeting import last_meeting
from mpq_compile.solve.problem import Problem, Solution
from mpq_compile.solve.tables import Bools, Floats, Ints, Tables

ErrorMetric = Literal["mse", "relative"]


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Integer codes q, and w ≈ scale · (q − zero_point)."""

    codes: Ints
    scale: float
    zero_point: int

    def dequantize(self) -> Floats:
        """Return scale · (codes − zero_point), float64."""
        return self.scale * (self.codes - self.zero_point).astype(np.float64)


def quantize_asymmetric(weights: NDArray[np.floating], bits: int) -> Codes:
    """Return MixQuant's codes [source]: asymmetric, one scale for the tensor, without a clamp.

    q_min = −2^(b−1), q_max = 2^(b−1) − 1, s = (max − min)/(q_max − q_min),
    z = q_min − int(min/s), q = round(w/s) + z. Without a clamp a code may lie one outside.

    >>> quantize_asymmetric(np.array([-1, 0.01, 1, 2]), 2).codes.tolist()
    [-2, -1, 0, 1]
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = np.asarray(weights, dtype=np.float64)
    scale = float(values.max() - values.min()) / (high - low)
    if scale == 0:
        # All weights are equal: one step of that size holds them exactly.
        scale = abs(float(values.flat[0])) or 1.0
    zero_point = low - int(values.min() / scale)
    codes = np.rint(values / scale).astype(np.int64) + zero_point
    return Codes(codes=codes, scale=scale, zero_point=zero_point)


def roundoff_error(
    weights: NDArray[np.floating], bits: int, metric: ErrorMetric = "relative"
) -> float:
    """Return QE(b): the mean of (w − ŵ)², or of |w − ŵ| / |w| over the weights that are not 0."""
    return rounding_error(weights, quantize_asymmetric(weights, bits).dequantize(), metric)


def rounding_error(
    weights: NDArray[np.floating], rounded: NDArray[np.floating], metric: ErrorMetric
) -> float:
    """Return QE of weights and what any rounding made of them; float64."""
    values = np.asarray(weights, dtype=np.float64)
    error = values - rounded
    if metric == "mse":
        return float(np.square(error).mean())
    nonzero = values != 0
    return float(np.abs(error[nonzero] / values[nonzero]).mean()) if nonzero.any() else 0.0


def least_bits(
    weights: NDArray[np.floating],
    multiplier: float,
    metric: ErrorMetric = "relative",
    bits: Sequence[int] = (8, 7, 6, 5, 4, 3, 2),
) -> int:
    """Return the smallest of ``bits`` with QE(b) ≤ multiplier · QE(8) [source]."""
    bound = multiplier * roundoff_error(weights, 8, metric)
    # 8 bits meet the bound by definition, whatever the multiplier.
    meeting = [b for b in bits if roundoff_error(weights, b, metric) <= bound]
    return min(meeting, default=8)


def solve_mixquant(
    problem: Problem, *, time_limit_s: float | None = None, multiplier: float | None = None
) -> Solution:
    """Return the rule's choice for the smallest multiplier within the budget, and a bound.

    Losses are read as round-off errors; the least positive one of a group stands for QE(8), so
    that a float candidate without error does not make the bound zero. Of the candidates within
    the bound the cheapest is taken. The certificate's ``multiplier`` is the one used, None where
    no multiplier gives a choice within the budget and another one was taken.

    Args:
        multiplier: Use this one instead.

    Raises:
        PlanError: ``multiplier`` is below 1, or its choice exceeds the budget.
        MpqError: The time was over before anything that fits was found.
    """
    grounds = prepare(problem, time_limit_s)
    incumbent = grounds.feasible.incumbent
    if incumbent is None:
        return grounds.nothing_fits("mixquant")
    rule = _Rule(grounds.tables, grounds.price)
    if multiplier is not None:
        choice = rule.choice(_checked(multiplier))
        if not grounds.fits(choice):
            raise _exceeded(multiplier)
        return grounds.conclude(choice, "mixquant", multiplier=multiplier)
    steps = rule.multipliers[::-1]
    search = "binary" if len(problem.budget) <= 1 and not problem.pairs else "brute"
    # From the largest multiplier down, the budget is met up to some step.
    found = last_meeting(
        len(steps), lambda n: 0.0 if grounds.fits(rule.choice(steps[n])) else -1.0, search
    )
    if found.index is None:
        return grounds.conclude(incumbent.choice, "mixquant", multiplier=None)
    used = float(steps[found.index])
    return grounds.conclude(rule.choice(used), "mixquant", multiplier=used)


class _Rule:
    """The cheapest candidate of each group whose error is within multiplier · reference."""

    def __init__(self, tables: Tables, price: Floats) -> None:
        loss = np.where(tables.allowed, tables.loss, np.inf)
        positive = np.where(loss > 0, loss, np.inf).min(axis=1)
        reference = np.where(np.isfinite(positive), positive, loss.min(axis=1))[:, None]
        # ratio ≤ m iff loss ≤ reference + (m − 1)·|reference|: m·reference where that is positive.
        size = np.where(reference != 0, np.abs(reference), 1.0)
        beyond = np.where(np.isfinite(loss), loss - reference, np.inf)
        self.ratio = 1.0 + np.maximum(np.where(reference != 0, beyond / size, beyond), 0.0)
        paid = np.tensordot(price, tables.cost, axes=1)
        self.order = np.lexsort((loss, paid), axis=1)
        self.multipliers = np.unique(self.ratio[np.isfinite(self.ratio)])

    def choice(self, multiplier: float) -> Ints:
        """Return the candidate (G,) of each group."""
        within: Bools = self.ratio <= multiplier
        rows = np.arange(len(within))
        first = np.take_along_axis(within, self.order, axis=1).argmax(axis=1)
        return self.order[rows, first]


def _checked(multiplier: float) -> float:
    if multiplier >= 1:
        return multiplier
    raise PlanError(
        "the error multiplier is too small",
        where="mixquant",
        expected="at least 1: the error of 8 bits itself",
        found=multiplier,
        remedy="give 2 or 3, or none: then the smallest that fits is taken",
    )


def _exceeded(multiplier: float) -> PlanError:
    return PlanError(
        f"the choice of multiplier {multiplier:g} exceeds the budget",
        where="mixquant",
        expected="a multiplier whose choice is within the budget",
        found=multiplier,
        remedy="raise it, or leave it out: then the smallest that fits is taken",
    )

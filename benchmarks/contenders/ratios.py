"""Ratios with their intervals, and the noise of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times faster than a peer: the peer's time over ours.

    Args:
        peer: The peer with the least ratio.
        value: Median over rounds of that ratio.
        low, high: 95 % bootstrap interval over rounds.
    """

    peer: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f}× [{self.low:.2f}, {self.high:.2f}] {self.peer}"


def ratio_to_best(
    ours: Sequence[float], peers: Mapping[str, Sequence[float]], seed: int = 0
) -> Ratio | None:
    """Return the ratio to the best of ``peers``; None where there is none.

    Times are paired by round: the ratio to a peer is the median over rounds of peer / ours, and
    the best peer is the one with the least. Rounds are drawn with replacement, the same for all,
    and the best peer is chosen anew in each draw, so that the interval carries that choice.
    """
    if not peers:
        return None
    ratios = np.array(list(peers.values()), np.float64) / np.asarray(ours, np.float64)
    medians = np.median(ratios, axis=1)
    rounds = ratios.shape[1]
    drawn = np.random.default_rng(seed).integers(0, rounds, (_RESAMPLES, rounds))
    least = np.median(ratios[:, drawn], axis=2).min(axis=0)
    low, high = np.quantile(least, [0.025, 0.975])
    best = int(medians.argmin())
    return Ratio(
        peer=list(peers)[best], value=float(medians[best]), low=float(low), high=float(high)
    )


def sqnr_db(outputs: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return 10 log10(Σ expected² / Σ (expected − output)²) over all compared inputs, dB."""
    reference = np.concatenate([np.asarray(y, np.float64).reshape(-1) for y in expected])
    found = np.concatenate([np.asarray(y, np.float64).reshape(-1) for y in outputs])
    noise = float(np.square(reference - found).sum())
    if noise == 0:
        return float("inf")
    return 10.0 * float(np.log10(np.square(reference).sum() / noise))

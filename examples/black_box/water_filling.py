"""Reverse water-filling: bits for independent sources whose noise falls by four with each bit.

    minimise Σ a_i 4^(−b_i)   subject to   Σ b_i = B

With real bits the closed form is b_i = max(0, ½ log₂(a_i / θ)), where the water level θ spends B.
The integer optimum gives one bit after the other to the source of most noise. The exact solver and
GC-PSO, which knows nothing of the formula, must find it too.

    python water_filling.py --plot water_filling.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mpq_compile.solve import (
    BlackBox,
    CandidateTerm,
    Group,
    Problem,
    minimize_black_box,
    solve,
)

MOST = 10


def closed_form(variances: np.ndarray, total: float) -> np.ndarray:
    """Return the real bits (n,) that spend ``total``, by bisection of the water level."""
    low, high = 1e-30, float(variances.max())
    for _ in range(200):
        level = np.sqrt(low * high)
        bits = np.maximum(0.0, 0.5 * np.log2(variances / level))
        low, high = (level, high) if bits.sum() > total else (low, level)
    return bits


def marginal_greedy(variances: np.ndarray, total: int) -> np.ndarray:
    """Return the integer optimum (n,): noises are convex in bits, so one bit at a time is best."""
    bits = np.zeros(len(variances), dtype=np.int64)
    for _ in range(total):
        bits[np.argmax(variances * 4.0**-bits)] += 1
    return bits


def by_table(variances: np.ndarray, total: int) -> list[int]:
    """Solve exactly, from the noise of each source at each number of bits."""
    groups = tuple(
        Group(
            name=f"source {i}",
            candidates=tuple(
                CandidateTerm(name=str(b), loss=float(a * 4.0**-b), costs={"bits": float(b)})
                for b in range(MOST + 1)
            ),
        )
        for i, a in enumerate(variances)
    )
    solution = solve(Problem(groups=groups, budget={"bits": float(total)}), "exact")
    return [int(name) for name in solution.assignment.values()]


def black_box(variances: np.ndarray, total: int) -> BlackBox:
    """Return the same problem as a black box: only whole assignments can be asked for."""
    return BlackBox.from_bits(
        {f"source {i}": range(MOST + 1) for i in range(len(variances))},
        lambda bits: (variances * 4.0**-bits).sum(axis=1),
        budget={"bits": total},
    )


def draw(path: Path, variances: np.ndarray, real: np.ndarray, bits: list[int]) -> None:
    """Draw bits of both kinds, and the noise that is left under the water level."""
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5.5), sharex=True)
    place = np.arange(len(variances))
    top.bar(place - 0.2, real, 0.4, label="real bits (closed form)", color="0.7")
    top.bar(place + 0.2, bits, 0.4, label="GC-PSO = exact optimum")
    top.set_ylabel("bits")
    top.legend()
    bottom.bar(place, variances, color="0.9", label="variance")
    bottom.bar(place, variances * 4.0 ** -np.array(bits), label="noise")
    level = (variances * 4.0**-real)[real > 0]
    bottom.axhline(level[0], linestyle="--", color="k", linewidth=1, label="water level")
    bottom.set(yscale="log", xlabel="source", ylabel="power")
    bottom.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    variances = np.sort(np.random.default_rng(1).lognormal(0.0, 2.0, 12))[::-1]
    total = 36
    best = marginal_greedy(variances, total)
    found = minimize_black_box(
        black_box(variances, total), "gcpso", seed=options.seed, evaluations=1500
    )
    real = closed_form(variances, total)
    noise = {
        "real bits": (variances * 4.0**-real).sum(),
        "integer optimum": (variances * 4.0**-best).sum(),
        "gcpso": found.loss,
    }
    print(", ".join(f"{name} {value:.6g}" for name, value in noise.items()))
    print("bits", *found.bits.values(), f"after {found.evaluations} evaluations")
    assert by_table(variances, total) == best.tolist(), "the exact solver missed the optimum"
    assert list(found.bits.values()) == best.tolist(), "GC-PSO missed the optimum"
    # Where the closed form is integer, it is the integer optimum.
    powers = 0.01 * 4.0 ** np.array([5, 3, 2, 1, 0, -1])
    assert by_table(powers, 11) == np.rint(closed_form(powers, 11)).tolist() == [5, 3, 2, 1, 0, 0]
    if options.plot:
        draw(options.plot, variances, real, list(found.bits.values()))


if __name__ == "__main__":
    main()

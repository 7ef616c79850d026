"""Gradient descent over a slow link: how many bits has the gradient of each iteration?

A quadratic ½ xᵀΛx is minimised in T steps x ← x − η Q_t(Λx), from a random start. The gradient of
step t is sent with b_t bits a coordinate; 0 bits send nothing. Dither makes the rounding error
independent of the gradient, uniform over one of 2^b_t intervals of ± three times the largest root
mean square G_t of a coordinate. So the second moments follow an exact recursion:

    E x_i² ← (1 − ηλ_i)² E x_i² + η² · 3 G_t² 4^(−b_t),   G_t² = max_i λ_i² E x_i²

Noise of one step enlarges all later gradients and with them their noise: nothing is separable, and
all assignments are enumerated.

    python gradient_descent.py --plot gradient_descent.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mpq_compile.solve import BlackBox, minimize_black_box

STEPS, RATE = 7, 1.0
WIDTHS = range(0, 7)
TOTAL = 14
CURVATURE = np.array([1.6, 1.0, 0.7, 0.5])
START = np.array([1.0, 2.0, 4.0, 8.0])


def path_of(bits: np.ndarray) -> np.ndarray:
    """Return the expected loss (particles, T + 1) along the way, for bits (particles, T)."""
    moments = np.tile(START**2, (len(bits), 1))
    losses = [0.5 * (CURVATURE * moments).sum(axis=1)]
    for b in bits.T:
        largest = np.square(CURVATURE) * moments
        noise = RATE**2 * 3.0 * largest.max(axis=1) * 4.0**-b
        moved = np.square(1 - RATE * CURVATURE) * moments + noise[:, None]
        moments = np.where(b[:, None] > 0, moved, moments)
        losses.append(0.5 * (CURVATURE * moments).sum(axis=1))
    return np.stack(losses, axis=1)


def final_loss(bits: np.ndarray) -> np.ndarray:
    """Return the expected loss (particles,) after the last step."""
    return path_of(bits)[:, -1]


def black_box() -> BlackBox:
    """Return the choice of bits for each step."""
    steps = {f"step {t}": WIDTHS for t in range(STEPS)}
    return BlackBox.from_bits(steps, final_loss, budget={"bits": TOTAL})


def draw(path: Path, bits: list[int]) -> None:
    """Draw the loss along the way, and the bits."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    runs = {"GC-PSO = optimum": bits, "uniform": [TOTAL // STEPS] * STEPS}
    for name, widths in runs.items():
        left.plot(path_of(np.array([widths]))[0], "o-", label=name)
    left.set(yscale="log", xlabel="step", ylabel="expected loss")
    left.legend()
    right.bar(range(STEPS), bits)
    right.axhline(TOTAL / STEPS, linestyle="--", color="0.5")
    right.set(xlabel="step", ylabel="bits of the gradient")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    best = minimize_black_box(black_box(), "exhaustive", evaluations=10**6)
    found = minimize_black_box(black_box(), seed=options.seed, evaluations=4000)
    greedy = minimize_black_box(black_box(), "greedy")
    uniform = float(final_loss(np.full((1, STEPS), TOTAL // STEPS))[0])
    print(
        f"final loss: optimum {best.loss:.6g} of {best.evaluations}, gcpso {found.loss:.6g} after "
        f"{found.evaluations}, greedy {greedy.loss:.6g}, uniform {uniform:.6g}"
    )
    print("bits", *found.bits.values())
    assert found.loss <= best.loss * (1 + 1e-12), "GC-PSO missed the optimum"
    if options.plot:
        draw(options.plot, list(found.bits.values()))


if __name__ == "__main__":
    main()

"""Word lengths of a FIR filter: one number of fractional bits for each coefficient.

A symmetric low-pass filter of 2n + 1 taps has n + 1 free coefficients h_i, rounded to multiples of
2^(−b_i). Two objectives:

- the L2 error of the frequency response. By Parseval it is Σ m_i (h_i − ĥ_i(b_i))² with
  m_0 = 1 and m_i = 2, so the exact solver gives the optimum;
- the ripple, the largest error in pass band and stop band. It is not separable, and all
  assignments are enumerated to know its optimum. Greedy misses it.

    python fir_filter.py --plot fir_filter.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mpq_compile.solve import (
    BlackBox,
    CandidateTerm,
    Group,
    Minimum,
    Problem,
    minimize_black_box,
    solve,
)

FREE = 7
WIDTHS = range(2, 8)
TOTAL = 28
FREQUENCY = np.linspace(0.0, np.pi, 256, endpoint=False) + np.pi / 512
PASS, STOP = 0.15 * np.pi > FREQUENCY, 0.55 * np.pi < FREQUENCY
# Times that a coefficient stands in the filter.
TIMES = np.array([1.0] + [2.0] * (FREE - 1))


def coefficients() -> np.ndarray:
    """Return h_0 … h_n of a windowed low-pass filter; h_0 is the middle tap."""
    taps = np.arange(FREE)
    window = 0.54 + 0.46 * np.cos(np.pi * taps / FREE)
    return 0.32 * np.sinc(0.32 * taps) * window


def rounded(h: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return h rounded to ``bits`` fractional bits, of any leading shape."""
    return np.rint(h * 2.0**bits) * 2.0**-bits


def response(h: np.ndarray) -> np.ndarray:
    """Return the amplitude response (…, frequencies) of coefficients (…, n + 1)."""
    return (h * TIMES) @ np.cos(np.outer(np.arange(FREE), FREQUENCY))


def l2_error(bits: np.ndarray) -> np.ndarray:
    """Return the mean square error of the response, measured at the frequencies."""
    h = coefficients()
    return np.square(response(rounded(h, bits)) - response(h)).mean(axis=-1)


def ripple(bits: np.ndarray) -> np.ndarray:
    """Return the largest deviation from 1 in the pass band and from 0 in the stop band."""
    amplitude = response(rounded(coefficients(), bits))
    deviation = np.where(PASS, amplitude - 1.0, amplitude)[..., PASS | STOP]
    return np.abs(deviation).max(axis=-1)


def exact_l2() -> float:
    """Return the least L2 error, from Parseval's terms and the exact solver."""
    h = coefficients()
    groups = tuple(
        Group(
            name=f"h{i}",
            candidates=tuple(
                CandidateTerm(
                    name=str(b),
                    loss=float(TIMES[i] * (h[i] - rounded(h[i], np.array(b))) ** 2),
                    costs={"bits": float(b)},
                )
                for b in WIDTHS
            ),
        )
        for i in range(FREE)
    )
    solution = solve(Problem(groups=groups, budget={"bits": TOTAL}), "exact")
    assert solution.status == "optimal" and solution.loss is not None
    return solution.loss


def black_box(objective) -> BlackBox:
    """Return the choice of fractional bits with TOTAL of them in all."""
    names = {f"h{i}": WIDTHS for i in range(FREE)}
    return BlackBox.from_bits(names, objective, budget={"bits": TOTAL})


def draw(path: Path, found: Minimum) -> None:
    """Draw the responses in decibels."""
    import matplotlib.pyplot as plt

    h = coefficients()
    filters = {
        "float": h,
        f"uniform, {TOTAL // FREE} bits each": rounded(h, np.full(FREE, TOTAL // FREE)),
        "GC-PSO, bits " + " ".join(map(str, found.bits.values())): rounded(
            h, np.array(list(found.bits.values()))
        ),
    }
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, taps in filters.items():
        decibels = 20 * np.log10(np.abs(response(taps)) + 1e-6)
        axis.plot(FREQUENCY / np.pi, decibels, label=name)
    axis.axvspan(0.15, 0.55, color="0.93")
    axis.set(xlabel="frequency / π", ylabel="dB", ylim=(-70, 5))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    least = exact_l2()
    found = minimize_black_box(black_box(l2_error), seed=options.seed, evaluations=3000)
    print(f"L2 error: exact {least:.6g}, gcpso {found.loss:.6g}")
    assert abs(found.loss - least) <= 1e-9 * least, "GC-PSO missed the optimum"

    best = minimize_black_box(black_box(ripple), "exhaustive", evaluations=10**6)
    found = minimize_black_box(black_box(ripple), seed=options.seed, evaluations=3000)
    greedy = minimize_black_box(black_box(ripple), "greedy")
    uniform = float(ripple(np.full(FREE, TOTAL // FREE)))
    unrounded = float(ripple(np.full(FREE, 50)))
    print(
        f"ripple: optimum {best.loss:.6g} of {best.evaluations}, gcpso {found.loss:.6g} after "
        f"{found.evaluations}, greedy {greedy.loss:.6g}, uniform {uniform:.6g}, "
        f"unrounded {unrounded:.6g}"
    )
    assert found.loss <= best.loss * (1 + 1e-12), "GC-PSO missed the optimum"
    if options.plot:
        draw(options.plot, found)


if __name__ == "__main__":
    main()

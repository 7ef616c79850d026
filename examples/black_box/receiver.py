"""Bits of the analog-to-digital converters of a receiver with several antennas.

Under the additive quantization noise model a converter of b bits turns y into (1 − β)y + q with
noise of power β(1 − β)E|y|². Antenna i then sees the users' signals with the weight

    w_i = 1 / (σ² + β/(1 − β) · (‖h_i‖² + σ²)),   MSE = tr (I + Σ_i w_i h_i h_iᴴ)⁻¹

A converter's power doubles with each bit, and the power of all is bounded; 0 bits switch it off.
What a bit is worth depends on what the other antennas see: all assignments are enumerated.

    python receiver.py --plot receiver.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from mpq_compile.solve import BlackBox, minimize_black_box

ANTENNAS, USERS, NOISE = 6, 3, 0.05
WIDTHS = range(0, 7)
POWER = 60.0
# β of 1 to 5 bits; from there on the rule for high resolution. An antenna without bits is off.
DISTORTION = np.array(
    [1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499]
    + [math.pi * math.sqrt(3) / 2 * 4.0**-b for b in range(6, WIDTHS.stop)]
)


def channel() -> np.ndarray:
    """Return h (antennas, users), complex; antennas differ in strength."""
    rng = np.random.default_rng(3)
    shape = (ANTENNAS, USERS)
    h = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / math.sqrt(2)
    return h * rng.lognormal(0.0, 0.7, (ANTENNAS, 1))


H = channel()


def mean_square_error(bits: np.ndarray) -> np.ndarray:
    """Return the MSE (particles,) of the best linear receiver, summed over users."""
    beta = DISTORTION[bits]
    received = np.square(np.abs(H)).sum(axis=1) + NOISE
    # (1 − β)/β is zero where the antenna is off.
    quality = (1.0 - beta) / beta
    weight = quality / (NOISE * quality + received)
    information = np.einsum("pa,au,av->puv", weight, H.conj(), H) + np.eye(USERS)
    return np.trace(np.linalg.inv(information), axis1=1, axis2=2).real


def power(bits: int) -> float:
    """Return a converter's power, in units of 1 bit's half."""
    return 2.0**bits if bits else 0.0


def black_box() -> BlackBox:
    """Return the choice of bits within the power."""
    antennas = {f"antenna {i}": WIDTHS for i in range(ANTENNAS)}
    costs = {"power": power}
    return BlackBox.from_bits(antennas, mean_square_error, {"power": POWER}, costs)


def uniform() -> float:
    """Return the MSE of the most bits that all antennas can have alike."""
    most = max(b for b in WIDTHS if ANTENNAS * power(b) <= POWER)
    return float(mean_square_error(np.full((1, ANTENNAS), most))[0])


def draw(path: Path, bits: list[int]) -> None:
    """Draw strength and bits of the antennas, and the MSE over the power."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    strength = 10 * np.log10(np.square(np.abs(H)).sum(axis=1) / NOISE)
    left.bar(np.arange(ANTENNAS) - 0.2, strength, 0.4, color="0.7", label="SNR, dB")
    left.bar(np.arange(ANTENNAS) + 0.2, bits, 0.4, label="bits (GC-PSO = optimum)")
    left.set_xlabel("antenna")
    left.legend()
    everything = np.stack(np.meshgrid(*[WIDTHS] * ANTENNAS, indexing="ij"), -1)
    everything = everything.reshape(-1, ANTENNAS)
    spent = np.vectorize(power)(everything).sum(axis=1)
    error = np.concatenate([mean_square_error(part) for part in np.array_split(everything, 64)])
    order = np.argsort(spent, kind="stable")
    right.step(spent[order], np.minimum.accumulate(error[order]), where="post", label="optimum")
    alike = [b for b in WIDTHS if b]
    levels = [mean_square_error(np.full((1, ANTENNAS), b))[0] for b in alike]
    right.plot([ANTENNAS * power(b) for b in alike], levels, "o--", color="0.5", label="uniform")
    right.set(xscale="log", xlabel="power", ylabel="MSE", xlim=(6, 800), yscale="log")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    best = minimize_black_box(black_box(), "exhaustive", evaluations=10**6)
    found = minimize_black_box(black_box(), seed=options.seed, evaluations=2000)
    greedy = minimize_black_box(black_box(), "greedy")
    print(
        f"MSE: optimum {best.loss:.6g} of {best.evaluations}, gcpso {found.loss:.6g} after "
        f"{found.evaluations}, greedy {greedy.loss:.6g}, uniform {uniform():.6g}"
    )
    print("bits", *found.bits.values())
    assert found.loss <= best.loss * (1 + 1e-12), "GC-PSO missed the optimum"
    if options.plot:
        draw(options.plot, list(found.bits.values()))


if __name__ == "__main__":
    main()

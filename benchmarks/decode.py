"""A greedy decode step of a small decoder at batch 1: tokens a second by width of the weights.

Random weights, a KV cache that is updated in place, every candidate in turns within one process.
Prints the median step, tokens a second, bytes of the linears' weights and how fast they are read;
what attention over a full cache adds; and how much faster the best 4-bit candidate is than the
best 8-bit one, paired by round, with the 95 % bootstrap interval of the median.

    python benchmarks/decode.py [--kind gpt|llama] [--layers 8] [--width 1024] [--rounds 20]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence

os.environ.setdefault("MPQ_THREADS", str(min(2, os.cpu_count() or 1)))

# ruff: noqa: E402  (TVM reads its thread count when it is imported)
import numpy as np
from decoder_nets import Size, make

from mpq_compile.pipeline import assign_session
from mpq_compile.recipe import Recipe
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session

CANDIDATES = ("fp32", "bf16", "w8a8", "w8a16", "w4a8", "w4a16", "w4a16g64")
PAUSE_S = 0.05


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("gpt", "llama"), default="gpt")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--cache", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--candidates", default=",".join(CANDIDATES))
    return parser.parse_args()


class Stepper:
    """A compiled decoder and its inputs at two places of the cache."""

    def __init__(self, network: CompiledNetwork, size: Size) -> None:
        self.network = network
        self.places = {name: size.step(0, at) for name, at in places(size).items()}
        self.block("last", 3)

    def block(self, place: str, steps: int) -> float:
        """Return the median of some steps in ms, after one that finds cold caches."""
        inputs = self.places[place]
        self.network(*inputs, in_place=True)
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            self.network(*inputs, in_place=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3


def places(size: Size) -> dict[str, int]:
    """Return the positions that are timed: an empty cache and a full one."""
    return {"first": 0, "last": size.cache - 1}


def linear_bytes(session: Session, candidate: str) -> int:
    """Return the bytes of weights that the linears of a step read."""
    bits = {"fp32": 32, "bf16": 16}.get(candidate) or int(candidate[1])
    return sum(site.weight_count for site in session.network.sites) * bits // 8


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return median and 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(np.asarray(ratios), (2000, len(ratios)))
    low, high = np.percentile(np.median(drawn, 1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def best_of(times: dict[str, list[float]], bits: int) -> str | None:
    """Return the candidate of so many weight bits with the least median."""
    offered = [name for name in times if name.startswith(f"w{bits}")]
    return min(offered, key=lambda name: statistics.median(times[name]), default=None)


def main() -> None:
    """Build, time in turns, print."""
    options = arguments()
    shared = options.heads if options.kind == "gpt" else options.heads // 4
    size = Size(
        width=options.width, layers=options.layers, heads=options.heads, shared=shared,
        vocabulary=options.vocabulary, cache=options.cache,
    )  # fmt: skip
    samples = [size.step(seed, (seed + 1) * size.cache // 4) for seed in range(3)]
    recipe = Recipe(rounding="nearest", correction="none")
    session = Session(make(options.kind, size), samples[0], samples, recipe=recipe)
    names = options.candidates.split(",")
    steppers = {name: Stepper(assign_session(session, name), size) for name in names}
    times: dict[str, dict[str, list[float]]] = {p: {n: [] for n in names} for p in places(size)}
    for round_index in range(options.rounds):
        for name in names if round_index % 2 else reversed(names):
            for place, found in times.items():
                time.sleep(PAUSE_S)
                found[name].append(steppers[name].block(place, options.steps))
    report(session, size, options.kind, times)


def report(
    session: Session, size: Size, kind: str, times: dict[str, dict[str, list[float]]]
) -> None:
    """Print a row for each candidate, and the ratio of the widths."""
    print(f"{kind}: {size}")
    print("| candidate | ms | tokens/s | weights, MB | GB/s | full cache adds, ms |")
    print("|---|---|---|---|---|---|")
    for name, last in times["last"].items():
        full, empty = statistics.median(last), statistics.median(times["first"][name])
        size_mb = linear_bytes(session, name) / 1e6
        row = f"{full:.2f} | {1e3 / full:.0f} | {size_mb:.1f} | {size_mb / empty:.1f}"
        print(f"| {name} | {row} | {full - empty:.2f} |")
    wide, narrow = (best_of(times["last"], bits) for bits in (8, 4))
    if wide is None or narrow is None:
        return
    pairs = zip(times["last"][wide], times["last"][narrow], strict=True)
    middle, low, high = interval([a / b for a, b in pairs])
    print(f"{narrow} is {middle:.2f}× [{low:.2f}, {high:.2f}] as fast as {wide}")


if __name__ == "__main__":
    main()

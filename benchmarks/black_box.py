"""How often the swarms of method 0 reach the optimum, and how they compare with greedy.

    python benchmarks/black_box.py [--seeds 100] [--part interacting --only "random, 2 + 1, 1"]

First separable objectives, whose optimum the exact solver (or one bit after the other) gives: seeds
of 100 that reach it. Then objectives in which bits interact, all assignments enumerated: the mean
of loss / optimum, and the share of seeds that are better and worse than greedy, given as many
evaluations as greedy took. Greedy goes upwards from the cheapest assignment; "greedy down" from the
most expensive one (it evaluates assignments beyond the budget), "restarts" is greedy from random
assignments until as many evaluations are spent. Last, the solvers of tables against the optimum.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mpq_compile.solve import BlackBox, Problem, minimize_black_box, solve
from mpq_compile.solve.feasible import prepare
from mpq_compile.solve.landscape import Landscape, build_landscape
from mpq_compile.solve.tables import build_tables

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "solve"), str(ROOT / "examples" / "black_box")]

import fir_filter  # noqa: E402
import gradient_descent  # noqa: E402
import receiver  # noqa: E402
from black_boxes import interacting, water_filling  # noqa: E402
from solve_instances import chain, network  # noqa: E402

WITHIN = 1 + 1e-9
EVERYTHING = 10**6


def separable() -> Iterator[tuple[str, BlackBox, float]]:
    """Yield name, black box and optimum."""
    for seed in range(3):
        yield f"water-filling {seed}", *water_filling(seed)
    yield "FIR L2", fir_filter.black_box(fir_filter.l2_error), fir_filter.exact_l2()


def non_separable() -> Iterator[tuple[str, BlackBox]]:
    """Yield objectives in which bits interact."""
    yield "FIR ripple", fir_filter.black_box(fir_filter.ripple)
    yield "receiver", receiver.black_box()
    yield "gradient descent", gradient_descent.black_box()
    for neighbours in (1, 2):
        for seed in range(3):
            yield f"random, {neighbours} + 1, {seed}", interacting(seed, neighbours=neighbours)


def table_problems() -> Iterator[tuple[str, Problem]]:
    """Yield problems whose losses are known."""
    yield "10 × 6", network(0, groups=10)
    yield "30 × 6", network(0, groups=30)
    yield "30 × 6 correlated", network(0, groups=30, correlated=True)
    yield "15 × 6, three budgets", network(1, groups=15, axes=3)
    yield "chain of 20 × 6", network(2, groups=20, edges=chain(20))
    yield "100 × 6", network(1, groups=100)


def landscape_of(box: BlackBox) -> Landscape:
    """Return the black box's levels and budgets."""
    return build_landscape(build_tables(box.problem), prepare(box.problem, None).price)


def greedy_down(box: BlackBox) -> tuple[float, int]:
    """Drop the bit of least rise per cost from the top until the budget is kept: loss, count."""
    landscape = landscape_of(box)
    levels, count = landscape.counts - 1, 1
    loss = float(box.objective(landscape.choice(levels[None]))[0])
    while (landscape.worth(levels[None])[1] > landscape.limit).any():
        steps = landscape.steps(levels[None], -1)
        down = np.flatnonzero(steps.possible[0])
        trials = np.repeat(levels[None], len(down), axis=0)
        trials[np.arange(len(down)), down] -= 1
        values = np.asarray(box.objective(landscape.choice(trials)))
        freed = -(steps.usage[0, down] / landscape.spread).sum(axis=1)
        best = int(np.argmin((values - loss) / np.maximum(freed, 1e-12)))
        levels, loss, count = trials[best], float(values[best]), count + len(down)
    return loss, count


def restarted(box: BlackBox, seed: int, evaluations: int) -> float:
    """Return the best of greedy runs from random assignments, within so many evaluations."""
    landscape, rng = landscape_of(box), np.random.default_rng(seed)
    best, left = np.inf, evaluations
    while left > 0:
        levels = rng.integers(0, landscape.counts)
        if (landscape.worth(levels[None])[1] > landscape.limit).any():
            continue
        names = zip(box.problem.groups, landscape.choice(levels).tolist(), strict=True)
        start = {group.name: group.candidates[c].name for group, c in names}
        found = minimize_black_box(box, "greedy", evaluations=left, start=start)
        best, left = min(best, found.loss), left - found.evaluations
    return best


def losses(box: BlackBox, solver: str, seeds: int, evaluations: int) -> np.ndarray:
    """Return the loss of each seed."""
    runs = (minimize_black_box(box, solver, seed=s, evaluations=evaluations) for s in range(seeds))
    return np.array([run.loss for run in runs])


def print_separable(seeds: int) -> None:
    print(f"separable: seeds of {seeds} that reach the optimum")
    for name, box, best in separable():
        for solver in ("gcpso", "ppso"):
            hits = {
                n: int((losses(box, solver, seeds, n) <= best * WITHIN).sum())
                for n in (200, 400, 900)
            }
            shown = ", ".join(f"{count} after {n}" for n, count in hits.items())
            print(f"  {name:18} {solver:6} {shown} evaluations", flush=True)


def print_non_separable(seeds: int, only: list[str]) -> None:
    print("not separable: mean loss / optimum (better, worse than greedy), equal evaluations")
    for name, box in non_separable():
        if only and name not in only:
            continue
        best = minimize_black_box(box, "exhaustive", evaluations=EVERYTHING)
        greedy = minimize_black_box(box, "greedy", evaluations=EVERYTHING)
        down, down_count = greedy_down(box)
        parts = [
            f"greedy {greedy.loss / best.loss:.4f} ({greedy.evaluations} evaluations)",
            f"down {down / best.loss:.4f} ({down_count})",
        ]
        runs: dict[str, Callable[[int], np.ndarray]] = {
            "gcpso": lambda n, box=box: losses(box, "gcpso", seeds, n),
            "ppso": lambda n, box=box: losses(box, "ppso", seeds, n),
            "restarts": lambda n, box=box: np.array([restarted(box, s, n) for s in range(seeds)]),
        }
        for label, run in runs.items():
            found = run(greedy.evaluations)
            better, worse = (found < greedy.loss / WITHIN), (found > greedy.loss * WITHIN)
            parts.append(
                f"{label} {found.mean() / best.loss:.4f} ({better.mean():.0%}, {worse.mean():.0%})"
            )
        ten = losses(box, "gcpso", seeds, 10 * greedy.evaluations)
        parts.append(
            f"gcpso at ten times as many {ten.mean() / best.loss:.4f}, "
            f"optimum in {(ten <= best.loss * WITHIN).mean():.0%}"
        )
        print(f"  {name:18} " + ", ".join(parts), flush=True)


def print_tables() -> None:
    print("tables: loss / optimum")
    for name, problem in table_problems():
        best = solve(problem, "exact").loss
        assert best is not None
        parts = []
        for solver in ("greedy", "gcpso", "ppso", "pareto", "mixquant"):
            answer = solve(problem, solver)
            assert answer.loss is not None
            parts.append(f"{solver} {answer.loss / best:.4f} ({answer.wall_s * 1e3:.0f} ms)")
        print(f"  {name:22} " + ", ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--part", choices=("separable", "interacting", "tables"), default=None)
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="of the interacting problems"
    )
    options = parser.parse_args()
    if options.part in (None, "separable"):
        print_separable(options.seeds)
    if options.part in (None, "interacting"):
        print_non_separable(options.seeds, options.only)
    if options.part in (None, "tables"):
        print_tables()


if __name__ == "__main__":
    main()

"""The solvers on Pisinger's families, chains with pair costs and quadratic objectives.

    python benchmarks/solver.py [--only goals,three,chain,quadratic,hawq,sizes] [--limit 10]

Each part prints one row an instance: status, seconds and gap of ours, whether the independent
checker proves it, and in the same run the seconds of HiGHS (scipy.optimize.milp on the plain
model), of HiGHS behind our reductions (solver ``milp``) and of OR-tools CP-SAT (``pip install
ortools``; left out where it is not installed). Contenders have ``--limit`` seconds. At the end: the
goals, each kept or missed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from solver_contenders import AVAILABLE, solve_cp_sat, solve_plain_highs
from solver_instances import FAMILIES, chain, knapsack, network, quadratic

from mpq_compile.solve import Problem, Solution
from mpq_compile.solve.certificate import check
from mpq_compile.solve.exact import solve_exact
from mpq_compile.solve.milp import solve_milp

PARTS = ("goals", "three", "chain", "quadratic", "hawq", "sizes")
GOALS_ONE = ((200, 6, 0.010), (1000, 10, 0.100), (10_000, 10, 2.0))
SIZES = ((10, 10), (10, 100), (100, 30), (1000, 100), (10_000, 100))
HEAD = f"{'instance':34s} {'status':9s} {'ours s':>8s} {'gap':>8s}  check"

goals: list[tuple[str, bool, str]] = []


def best_of(run: Callable[[], Solution], repeats: int) -> tuple[Solution, float]:
    """Return the answer and the least of some wall-clock times, in seconds."""
    times, solution = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        solution = run()
        times.append(time.perf_counter() - start)
    assert solution is not None
    return solution, min(times)


def row(name: str, problem: Problem, solution: Solution, seconds: float, *others: str) -> bool:
    """Print a row; return whether the checker proves the optimum."""
    report = check(problem, solution)
    mark = "proven" if report.optimal else "bound" if report.ok else "WRONG"
    shown = f"{name:34s} {solution.status:9s} {seconds:8.4f} {solution.gap:8.1e}  {mark:8s}"
    print(" ".join([shown, *others]), flush=True)
    return report.optimal and solution.gap == 0


def against(problem: Problem, limit: float, gap: float = 0.0) -> dict[str, tuple[float, float]]:
    """Return (seconds, gap reached) of each contender."""
    found = {"HiGHS": solve_plain_highs(problem, limit, gap)}
    start = time.perf_counter()
    solution = solve_milp(problem, time_limit_s=limit, gap=gap)
    found["milp"] = (time.perf_counter() - start, float(solution.gap or 0.0))
    if AVAILABLE:
        found["CP-SAT"] = solve_cp_sat(problem, limit, gap)
    return found


def shown(found: dict[str, tuple[float, float]]) -> Iterator[str]:
    """Yield each contender's seconds and gap."""
    for name, (seconds, gap) in found.items():
        yield f"{name} {seconds:.3f} ({gap:.0e})"


def instances(groups: int, candidates: int, axes: int = 1) -> Iterator[tuple[str, Problem]]:
    """Yield every family's instance of a size, and one with real numbers."""
    for family in FAMILIES:
        yield family, knapsack(family, groups, candidates, axes=axes)
    yield "network", network(groups, candidates, axes=axes)


def one_budget(limit: float) -> None:
    """One budget: gap 0, a checked certificate, and the time goals."""
    for groups, candidates, goal in GOALS_ONE:
        slowest, proven = 0.0, True
        for family, problem in instances(groups, candidates):
            repeats = 5 if groups <= 1000 else 2
            solution, seconds = best_of(lambda p=problem: solve_exact(p), repeats)
            others = shown(against(problem, limit)) if groups <= 1000 else ()
            name = f"{family} {groups}×{candidates}"
            proven &= row(name, problem, solution, seconds, *others)
            slowest = max(slowest, seconds)
        size = f"one budget {groups}×{candidates}"
        goals.append((f"{size} in {goal:g} s", slowest <= goal, f"slowest {slowest:.4f} s"))
        goals.append((f"{size}: gap 0, certificate proven", proven, ""))


def three_budgets(limit: float) -> None:
    """Three budgets: gap of 0.1 % within 2 s, and no slower than HiGHS to the same gap."""
    slowest, widest, ahead = 0.0, 0.0, True
    for family, problem in instances(200, 6, axes=3):
        solution, seconds = best_of(lambda p=problem: solve_exact(p, time_limit_s=2, gap=1e-3), 2)
        found = against(problem, limit, 1e-3)
        row(f"{family} 200×6, 3 budgets, 0.1 %", problem, solution, seconds, *shown(found))
        slowest, widest = max(slowest, seconds), max(widest, float(solution.gap or 0))
        ahead &= all(seconds <= found[name][0] for name in ("HiGHS", "milp"))
    goals.append(
        (
            "three budgets 200×6: gap 0.1 % in 2 s",
            widest <= 1e-3 and slowest <= 2,
            f"widest {widest:.1e}, slowest {slowest:.3f} s",
        )
    )
    goals.append(("three budgets: never slower than HiGHS to that gap", ahead, ""))


def chains(limit: float) -> None:
    """Chains with pair costs: exact within a second."""
    slowest, proven = 0.0, True
    for seed in range(3):
        problem = chain(200, 6, seed=seed)
        solution, seconds = best_of(lambda p=problem: solve_exact(p), 2)
        proven &= row(f"chain 200×6 #{seed}", problem, solution, seconds)
        slowest = max(slowest, seconds)
    detail = f"slowest {slowest:.3f} s"
    goals.append(("chain 200×6 exact in 1 s, proven", slowest <= 1 and proven, detail))


def quadratics(limit: float) -> None:
    """Quadratic objectives over all pairs of 20 groups: exact within ten seconds."""
    slowest, exact = 0.0, True
    for seed in range(3):
        for signed in (False, True):
            problem = quadratic(20, 4, seed=seed, signed=signed)
            solution, seconds = best_of(lambda p=problem: solve_exact(p), 1)
            start = time.perf_counter()
            highs = solve_milp(problem, time_limit_s=limit)
            other = f"milp {time.perf_counter() - start:.2f} ({highs.gap:.0e})"
            name = f"quadratic 20×4{' signed' if signed else ''} #{seed}"
            row(name, problem, solution, seconds, other)
            slowest, exact = max(slowest, seconds), exact and solution.status == "optimal"
    detail = f"slowest {slowest:.2f} s"
    goals.append(("quadratic 20×4 exact in 10 s", slowest <= 10 and exact, detail))


def hawq(limit: float) -> None:
    """HAWQ-V3's six published configurations."""
    file = Path(os.environ.get("MPQ_DATA", "../shared/data")) / "hawq_v3.json"
    if not file.exists():
        print(f"HAWQ-V3 left out: {file} is not there")
        return
    same = 0
    for name, net in json.loads(file.read_text())["networks"].items():
        for level, published in net["published"].items():
            problem, tie = _hawq_problem(net, published["latency_limit"])
            solution, seconds = best_of(lambda p=problem: solve_exact(p), 3)
            layers = range(len(published["bits"]))
            bits = [int(solution.assignment[str(tie.get(i, i))]) for i in layers]
            same += bits == published["bits"]
            label = "as published" if bits == published["bits"] else "OTHER"
            row(f"{name} {level}", problem, solution, seconds, label)
    goals.append(("HAWQ-V3's six published configurations", same == 6, f"{same} of 6"))


def _hawq_problem(net: dict, limit: float) -> tuple[Problem, dict[int, int]]:
    tie = {layer: layers[0] for layers in net["tied_layers"] for layer in layers}
    members: dict[int, list[int]] = {}
    for layer in range(len(net["loss_4bit"])):
        members.setdefault(tie.get(layer, layer), []).append(layer)
    groups = [
        {
            "name": str(first),
            "candidates": [
                {
                    "name": str(bits),
                    "loss": sum(net[f"loss_{bits}bit"][i] for i in layers),
                    "costs": {"ms": sum(net[f"latency_{bits}bit"][i] for i in layers)},
                }
                for bits in (4, 8)
            ],
        }
        for first, layers in members.items()
    ]
    return Problem.from_json({"groups": groups, "budget": {"ms": limit}}), tie


def sizes(limit: float) -> None:
    """All families from 10 to 10,000 groups and 10 to 100 candidates: gap 0 everywhere."""
    proven = True
    for groups, candidates in SIZES:
        for family, problem in instances(groups, candidates):
            solution, seconds = best_of(lambda p=problem: solve_exact(p, time_limit_s=60), 1)
            others = shown(against(problem, limit)) if groups <= 100 else ()
            shows = row(f"{family} {groups}×{candidates}", problem, solution, seconds, *others)
            proven &= shows or family not in FAMILIES
    size = "Pisinger's families, 10 to 10,000 groups, 10 to 100 candidates"
    goals.append((f"{size}: gap 0, certificate proven", proven, "(network: beside them)"))


RUN = dict(zip(PARTS, (one_budget, three_budgets, chains, quadratics, hawq, sizes), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of a contender")
    given = parser.parse_args()
    if not AVAILABLE:
        print("CP-SAT left out: OR-tools is not installed (pip install ortools)")
    solve_exact(network(20, 4))  # imports are no part of any time
    print(HEAD)
    for part in given.only.split(","):
        RUN[part](given.limit)
    print("\ngoals")
    for name, kept, detail in goals:
        print(f"{'kept  ' if kept else 'MISSED'} {name}  {detail}")


if __name__ == "__main__":
    main()

"""Allocators of weight bits on pretrained networks, at equal budgets: top-1 and cross-entropy.

    python benchmarks/allocators.py [--nets resnet20,resnet32,squeezenet,dscnn] [--methods …]
        [--images 5000] [--draws 20] [--correction affine] [--cache FOLDER] [--json FILE]

Candidates are w{2,3,4,5,6,8}a8, rounded to nearest, with the gain and shift of channels that
``--correction`` names; no rounding is optimised and nothing is trained. Budgets are average bits of
weights, and BOPs of uniform assignments. Beside each method stand random assignments that fill the
budget (judged on the first 1,000 samples) and the straight line between the uniform ones.
Calibration and evaluation share no sample. Differences to ``auto`` come with their paired standard
error over the evaluation samples. ``--cache`` keeps what was evaluated, so that an interrupted run
goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from shared_nets import NAMES, SharedNet, load_net

import mpq_compile as mpq
from mpq_compile.auto import AUTO, plan_auto
from mpq_compile.progress import track
from mpq_compile.recipe import Recipe
from mpq_compile.reconstruct.correction import CORRECTIONS
from mpq_compile.session import Session

BITS = (2, 3, 4, 5, 6, 8)
CANDIDATES = [f"w{bits}a8" for bits in BITS]
AVERAGES = (2.5, 3.0, 3.5, 4.0, 5.0)
BOPS_OF = (3, 4, 5)
# Name: (metric, solver).
METHODS = {
    "auto": ("auto", "auto"),
    "greedy": ("taylor", "greedy"),
    "taylor": ("taylor", "exact"),
    "fisher": ("fisher", "exact"),
    "gauss_newton": ("gauss_newton", "exact"),
    "kl": ("kl", "exact"),
    "sqnr": ("sqnr", "exact"),
    "pareto": ("sqnr", "pareto"),
    "roundoff": ("roundoff", "exact"),
    "mixquant": ("roundoff", "mixquant"),
    "gcpso": ("gauss_newton", "gcpso"),
    "ppso": ("gauss_newton", "ppso"),
    "pairwise": ("pairwise", "pairwise"),
}
_BATCH = 100
# Samples on which random assignments are judged.
_FEW = 1000


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What an assignment does to the evaluation samples: right answers and cross-entropy, [N]."""

    right: np.ndarray
    entropy: np.ndarray


@dataclass
class Judge:
    """Evaluates assignments of one network with fake quantizers, each once."""

    net: SharedNet
    session: Session
    folder: Path | None
    seen: dict[str, Scored] = field(default_factory=dict)

    def score(self, assignment: Mapping[str, str]) -> Scored:
        """Return the scores of an assignment; an empty one is the float network."""
        what = self.net.name, len(self.net.images), self.session.recipe.correction
        key = hashlib.sha256(repr((what, sorted(assignment.items()))).encode()).hexdigest()[:24]
        if key not in self.seen:
            self.seen[key] = self._kept(key) or self._run(key, assignment)
        return self.seen[key]

    def _kept(self, key: str) -> Scored | None:
        if self.folder is None or not (self.folder / f"{key}.npz").exists():
            return None
        with np.load(self.folder / f"{key}.npz") as arrays:
            return Scored(right=arrays["right"], entropy=arrays["entropy"])

    def _run(self, key: str, assignment: Mapping[str, str]) -> Scored:
        self.session.graph.assign(assignment)
        with torch.no_grad():
            logits = torch.cat(
                [self.session.graph.module(x)[0].flatten(1) for x in self.net.images.split(_BATCH)]
            )
        found = Scored(
            right=(logits.argmax(1) == self.net.labels).numpy(),
            entropy=F.cross_entropy(logits, self.net.labels, reduction="none").double().numpy(),
        )
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            np.savez(self.folder / f"{key}.npz", right=found.right, entropy=found.entropy)
        return found


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method at one budget of one network. ``less`` is auto's top-1 minus this one's, in %."""

    net: str
    budget: str
    method: str
    top1: float
    entropy: float
    less: float
    less_error: float
    plan_s: float


def session_of(net: SharedNet, metric: str, solver: str, correction: str) -> Session:
    """Return a session that measures nothing: only sizes and BOPs are budgeted."""
    batches = list(zip(net.calibration.split(64), net.calibration_labels.split(64), strict=True))
    return Session(
        net.model,
        net.example,
        batches,
        target="bit_serial",
        candidates=CANDIDATES,
        metric=metric,
        solver=solver,
        recipe=Recipe(correction=correction),
    )


def budgets_of(session: Session) -> dict[str, mpq.Budget]:
    """Return the budgets by name."""
    found = {f"{bits:g} bits": mpq.Budget(avg_bits=bits) for bits in AVERAGES}
    for bits in BOPS_OF:
        plan = session.bare_plan({site: f"w{bits}a8" for site in session.choices})
        found[f"BOPs of w{bits}"] = mpq.Budget(bops=plan.predicted.bops)
    return found


def used(session: Session, assignment: Mapping[str, str], budget: mpq.Budget) -> float:
    """Return the share of the budget that an assignment uses."""
    predicted = session.bare_plan(dict(assignment)).predicted
    if budget.avg_bits is not None:
        return predicted.avg_bits / budget.avg_bits
    assert budget.bops is not None
    return predicted.bops / budget.bops


def random_within(session: Session, budget: mpq.Budget, seed: int) -> dict[str, str]:
    """Return a random assignment that no single upgrade could improve within the budget."""
    generator = np.random.default_rng(seed)
    levels = dict.fromkeys(session.choices, 0)
    open_sites = list(levels)
    while open_sites:
        site = open_sites[int(generator.integers(len(open_sites)))]
        levels[site] += 1
        assignment = {s: CANDIDATES[level] for s, level in levels.items()}
        if used(session, assignment, budget) > 1:
            levels[site] -= 1
            open_sites.remove(site)
        elif levels[site] == len(CANDIDATES) - 1:
            open_sites.remove(site)
    return {site: CANDIDATES[level] for site, level in levels.items()}


def line(session: Session, judge: Judge, budget: mpq.Budget) -> Scored:
    """Return the point at the budget on the straight line between uniform assignments."""
    uniform = [dict.fromkeys(session.choices, name) for name in CANDIDATES]
    shares = np.array([used(session, assignment, budget) for assignment in uniform])
    above = int(np.clip(np.searchsorted(shares, 1.0), 1, len(shares) - 1))
    weight = (1.0 - shares[above - 1]) / (shares[above] - shares[above - 1])
    low, high = judge.score(uniform[above - 1]), judge.score(uniform[above])
    return Scored(
        right=(1 - weight) * low.right + weight * high.right,
        entropy=(1 - weight) * low.entropy + weight * high.entropy,
    )


def plans(
    net: SharedNet, methods: Sequence[str], correction: str
) -> tuple[dict[tuple[str, str], dict[str, str]], dict[str, float]]:
    """Return the assignment of each (method, budget), and the seconds that a method's took.

    Methods that share a metric compute it each: the time is that of a user who names the method.
    """
    found, seconds = {}, {}
    for method in methods:
        start = time.perf_counter()
        session = session_of(net, *METHODS[method], correction)
        for name, budget in budgets_of(session).items():
            plan = plan_auto(session, budget) if method == AUTO else session.solve(budget)
            found[method, name] = dict(plan.assignment)
        seconds[method] = time.perf_counter() - start
    return found, seconds


def run(
    net: SharedNet, methods: Sequence[str], draws: int, folder: Path | None, correction: str
) -> list[Cell]:
    """Plan with every method, evaluate, compare."""
    found, seconds = plans(net, methods, correction)
    session = session_of(net, "sqnr", "exact", correction)
    judge = Judge(net, session, folder)
    # Twenty draws are averaged: fewer samples tell their mean well enough.
    few = Judge(replace(net, images=net.images[:_FEW], labels=net.labels[:_FEW]), session, folder)
    exact = judge.score({})
    print(f"{net.name}: float {100 * exact.right.mean():.2f} %, entropy {exact.entropy.mean():.4f}")
    cells = []
    for name, budget in track(list(budgets_of(session).items()), f"evaluate {net.name}"):
        rows = {method: judge.score(found[method, name]) for method in methods}
        rows["line"] = line(session, judge, budget)
        if draws:
            scored = [few.score(random_within(session, budget, seed)) for seed in range(draws)]
            rows["random"] = Scored(
                right=np.mean([s.right for s in scored], axis=0),
                entropy=np.mean([s.entropy for s in scored], axis=0),
            )
        cells += [
            _cell(net.name, name, method, rows[methods[0]], scored_, seconds.get(method, 0.0))
            for method, scored_ in rows.items()
        ]
        show(cells[-len(rows) :])
    return cells


def _cell(net: str, budget: str, method: str, first: Scored, found: Scored, plan_s: float) -> Cell:
    less = first.right[: len(found.right)].astype(float) - found.right
    return Cell(
        net=net,
        budget=budget,
        method=method,
        top1=100 * float(found.right.mean()),
        entropy=float(found.entropy.mean()),
        less=100 * float(less.mean()),
        less_error=100 * float(less.std() / len(less) ** 0.5),
        plan_s=plan_s,
    )


def show(cells: Sequence[Cell]) -> None:
    """Print one budget of one network."""
    print(f"  {cells[0].budget}", flush=True)
    for cell in cells:
        print(
            f"    {cell.method:14s} top-1 {cell.top1:6.2f}  entropy {cell.entropy:7.4f}  "
            f"{cells[0].method} − this {cell.less:+6.2f} ± {cell.less_error:.2f}",
            flush=True,
        )


def summary(cells: Sequence[Cell]) -> None:
    """Print the means over cells, and where the first method is behind another."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    print("mean over cells")
    for method in methods:
        own = [cell for cell in cells if cell.method == method]
        behind = sum(cell.less < -2 * cell.less_error for cell in own)
        print(
            f"  {method:14s} top-1 {np.mean([c.top1 for c in own]):6.2f}  entropy "
            f"{np.mean([c.entropy for c in own]):7.4f}  ahead of {methods[0]} by more than two "
            f"standard errors in {behind} of {len(own)} cells; plans took {own[0].plan_s:.1f} s"
        )


def main() -> None:
    """Run the networks; print and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default=",".join(NAMES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--images", type=int, default=5000, help="evaluation images of CIFAR")
    parser.add_argument("--draws", type=int, default=20, help="random assignments a budget")
    parser.add_argument("--correction", default="affine", choices=CORRECTIONS)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cells: list[Cell] = []
    for name in options.nets.split(","):
        net = load_net(name, options.images if name.startswith("resnet") else None)
        methods = options.methods.split(",")
        cells += run(net, methods, options.draws, options.cache, options.correction)
    summary(cells)
    if options.json:
        rows = [vars(cell) for cell in cells]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

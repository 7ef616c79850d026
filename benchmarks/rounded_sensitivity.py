"""Plans at few bits from sensitivities on nearest and on rounded weights: top-1 of each.

    python benchmarks/rounded_sensitivity.py [--nets resnet20,dscnn] [--metrics sqnr,kl]
        [--bits 3,4] [--solver exact] [--roundings gptq,per_site] [--samples 256] [--images 2000]
        [--seeds 1]

Prints the time that fitting all sites takes for w{2,3,4,5,6}a8, with nothing kept from before, then
a line for each metric, average of bits a weight, and seed: of the plan by either table, built
with every rounding, top-1 and the divergence from float in millinats a sample, and how many sites
the plans give other bits. Calibration and evaluation share no sample; what is judged is the integer
oracle. A seed draws which samples calibrate. Differences (rounded minus nearest) are paired, with
their standard error over the evaluation samples.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping

import torch
from shared_nets import SharedNet, load_net, paired_standard_error, top1
from torch import Tensor

from mpq_compile.closed_loop import plan_within
from mpq_compile.progress import track
from mpq_compile.recipe import Recipe
from mpq_compile.reconstruct.per_site import WEIGHTS
from mpq_compile.session import Session
from mpq_compile.types import Budget

CANDIDATES = [f"w{bits}a8" for bits in (2, 3, 4, 5, 6, 8)]
_BATCH = 100


def session_of(net: SharedNet, options: argparse.Namespace, seed: int, recipe: Recipe) -> Session:
    """Return a session that calibrates on samples drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(net.calibration), generator=generator)[: options.samples]
    return Session(
        net.model,
        net.example,
        [(net.calibration[order], net.calibration_labels[order])],
        target="bit_serial",
        candidates=CANDIDATES,
        solver=options.solver,
        recipe=recipe,
        seed=seed,
    )


def judged(net: SharedNet, session: Session, assignment: Mapping[str, str] | None) -> Tensor:
    """Return log-probabilities of the evaluation samples, float64 [B, classes]; None is float."""
    graph = session.float_graph() if assignment is None else session.reference(assignment)
    spans = [slice(i, i + _BATCH) for i in range(0, len(net.images), _BATCH)]
    with torch.no_grad():
        parts = [graph(net.images[span]) for span in track(spans, "evaluate")]
    return torch.cat(parts).flatten(1).double().log_softmax(1)


def fitting_seconds(session: Session) -> float:
    """Return the time that the fits of all candidates of all sites take."""
    session.calibration_for(session.choices)
    start = time.perf_counter()
    session.fitted_for(session.choices)
    return time.perf_counter() - start


def report(net: SharedNet, options: argparse.Namespace, seed: int) -> None:
    """Print the lines of one network and seed."""
    planners = [session_of(net, options, seed, Recipe(sensitivity_on=name)) for name in WEIGHTS]
    builders = {
        rounding: session_of(net, options, seed, Recipe(rounding=rounding))
        for rounding in options.roundings.split(",")
    }
    first = planners[0]
    seconds = fitting_seconds(first)
    samples = sum(len(batch.inputs[0]) for batch in first.batches)
    exact = judged(net, first, None)
    print(
        f"{net.name}, seed {seed}: float {100 * accuracy(net, exact):.2f} on {len(exact)} images; "
        f"{len(first.network.sites)} sites fitted to {samples} samples in {seconds:.1f} s",
        flush=True,
    )
    for metric in options.metrics:
        for bits in options.bits:
            plans = [assignment_of(session, metric, bits) for session in planners]
            differing = sum(plans[0][site] != name for site, name in plans[1].items())
            for rounding, session in builders.items():
                found = [judged(net, session, plan) for plan in plans]
                print(
                    f"  {metric:12s} {bits:g} bits  {rounding:8s}  {line(net, exact, *found)}  "
                    f"{differing} sites differ",
                    flush=True,
                )


def line(net: SharedNet, exact: Tensor, nearest: Tensor, rounded: Tensor) -> str:
    """Return top-1 and divergence from float of both, and their difference."""
    hits = [top1(scores, net.labels) for scores in (nearest, rounded)]
    losses = [1e3 * (exact.exp() * (exact - scores)).sum(1) for scores in (nearest, rounded)]
    error = paired_standard_error(hits[1], hits[0])
    change = losses[1] - losses[0]
    spread = float(change.std()) / len(change) ** 0.5
    a, b = (100 * accuracy(net, scores) for scores in (nearest, rounded))
    x, y = (float(loss.mean()) for loss in losses)
    return (
        f"top-1 {a:6.2f} → {b:6.2f} ({b - a:+5.2f} ± {error:.2f})  "
        f"KL {x:6.1f} → {y:6.1f} ({y - x:+5.1f} ± {spread:.1f})"
    )


def accuracy(net: SharedNet, scores: Tensor) -> float:
    """Return the share of samples that are right."""
    return float(top1(scores, net.labels).double().mean())


def assignment_of(session: Session, metric: str, bits: float) -> dict[str, str]:
    """Return what the session's solver makes of a metric's table."""
    session.metric = metric
    return dict(plan_within(session, Budget(avg_bits=bits), None).assignment)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default="resnet20,dscnn")
    parser.add_argument("--metrics", type=lambda text: text.split(","), default=["sqnr", "kl"])
    parser.add_argument("--bits", type=lambda text: [float(b) for b in text.split(",")])
    parser.add_argument("--solver", default="exact")
    parser.add_argument("--roundings", default="gptq,per_site")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--images", type=int, default=2000, help="evaluation images of CIFAR")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    options.bits = options.bits or [3.0, 4.0]
    with tempfile.TemporaryDirectory() as folder:
        # Fits that an earlier run kept would take no time.
        os.environ["XDG_CACHE_HOME"] = folder
        for name in options.nets.split(","):
            cifar = name.startswith("resnet")
            net = load_net(name, options.images if cifar else None, 1024)
            for seed in range(options.seeds):
                report(net, options, seed)


if __name__ == "__main__":
    main()

"""Top-1 of pretrained networks at few bits, by the way in which weights are rounded.

    python benchmarks/accuracy.py [--nets resnet20,…] [--settings w4a8,…] [--roundings nearest,gptq]
        [--seeds 3] [--images 5000] [--json FILE]

Settings: ``w3a8`` is for every site, ``w2a8/w8a8`` has the second at the first and the last site,
``3 bits`` is a mix of w{2,3,4,5,6,8}a8 with that many bits a weight on average (``kl``, exact).
Calibration and evaluation share no sample: CIFAR calibrates on 1,024 training images and is judged
on 5,000 test images, the others on 100 and 400. What is judged is the integer oracle, which the
built network equals bit for bit. A seed draws the order of the calibration samples. Differences to
float come with their paired standard error over the evaluation samples.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from shared_nets import NAMES, SharedNet, load_net, paired_standard_error, top1

from mpq_compile.progress import track
from mpq_compile.recipe import Recipe
from mpq_compile.registry import ROUNDINGS
from mpq_compile.session import Session
from mpq_compile.types import Budget

MIXED = [f"w{bits}a8" for bits in (2, 3, 4, 5, 6, 8)]
SETTINGS = ("w8a8", "w4a8", "w3a8", "w2a8/w8a8", "4 bits", "3 bits")
_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting of a network, rounded in one way. Accuracies in %, times in s."""

    net: str
    setting: str
    rounding: str
    top1: list[float]
    float_top1: float
    difference_error: float
    round_s: float

    def line(self) -> str:
        """Return the row as it is printed."""
        mean = statistics.fmean(self.top1)
        spread = max(self.top1) - min(self.top1)
        return (
            f"{self.net:10s} {self.setting:10s} {self.rounding:8s} {mean:6.2f}  spread "
            f"{spread:4.2f}  − float {mean - self.float_top1:+6.2f} ± {self.difference_error:.2f}"
            f"  rounded in {self.round_s:.1f} s"
        )


def session_of(net: SharedNet, rounding: str, seed: int) -> Session:
    """Return a session whose calibration samples are in a random order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(net.calibration), generator=generator)
    return Session(
        net.model,
        net.example,
        [net.calibration[order]],
        target="bit_serial",
        candidates=MIXED,
        metric="kl",
        recipe=Recipe(rounding=rounding),
        seed=seed,
    )


def assignment_of(session: Session, setting: str) -> dict[str, str]:
    """Return the candidates of a setting."""
    sites = [site.id for site in session.network.sites]
    average, _, mixed = setting.partition(" ")
    if mixed:
        return dict(session.solve(Budget(avg_bits=float(average))).assignment)
    inner, _, ends = setting.partition("/")
    chosen = dict.fromkeys(sites, inner)
    if ends:
        chosen[sites[0]] = chosen[sites[-1]] = ends
    return chosen


def right(net: SharedNet, session: Session, assignment: Mapping[str, str] | None) -> torch.Tensor:
    """Return which evaluation samples come out right; None is the float network."""
    graph = session.float_graph() if assignment is None else session.reference(assignment)
    parts = []
    with torch.no_grad():
        spans = range(0, len(net.images), _BATCH)
        for start in track(spans, "evaluate"):
            span = slice(start, start + _BATCH)
            parts.append(top1(graph(net.images[span]), net.labels[span]))
    return torch.cat(parts)


def measured(net: SharedNet, setting: str, rounding: str, seeds: int) -> Row:
    """Return one row: the same for each seed."""
    found, seconds, errors = [], [], []
    for seed in range(seeds):
        session = session_of(net, rounding, seed)
        exact = right(net, session, None)
        assignment = assignment_of(session, setting)
        session.calibration_for(assignment)
        start = time.perf_counter()
        session.rounded_for(assignment)
        seconds.append(time.perf_counter() - start)
        hits = right(net, session, assignment)
        found.append(100 * float(hits.float().mean()))
        errors.append(paired_standard_error(hits, exact))
    return Row(
        net=net.name,
        setting=setting,
        rounding=rounding,
        top1=found,
        float_top1=100 * float(exact.float().mean()),
        difference_error=statistics.fmean(errors),
        round_s=statistics.median(seconds),
    )


def main() -> None:
    """Measure what was asked for, print each row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default=",".join(NAMES))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--roundings", default=",".join(sorted(ROUNDINGS, reverse=True)))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000, help="evaluation images of CIFAR")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.nets.split(","):
        cifar = name.startswith("resnet")
        net = load_net(name, options.images if cifar else None, 1024 if cifar else 100)
        for setting in options.settings.split(","):
            for rounding in options.roundings.split(","):
                rows.append(measured(net, setting, rounding, options.seeds))
                print(rows[-1].line(), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    floats = {row.net: f"{row.float_top1:.2f}" for row in rows}
    print(", ".join(f"float {net} {value}" for net, value in floats.items()))
    print(f"peak memory {peak:.0f} MB")
    if options.json:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Top-1 of pretrained networks at few bits, by the way in which weights are found.

    python benchmarks/accuracy.py [--nets resnet20,…] [--settings w4a8,…] [--methods nearest,gptq]
        [--seeds 3] [--images 5000] [--json FILE]

A method is a rounding, as ``rounding=`` names it; ``gptq+finetune`` goes on from there with two
epochs of ``mpq.finetune`` on the calibration samples, without labels.

Settings: ``w3a8`` is for every site, ``w2a8/w8a8`` has the second at the first and the last site,
``3 bits`` is a mix of w{2,3,4,5,6,8}a8 with that many bits a weight on average (``kl``, exact).
Calibration and evaluation share no sample: CIFAR calibrates on 1,024 training images and is judged
on 5,000 test images, the others on 100 and 400. What is judged is the integer oracle, which the
built network equals bit for bit. A seed draws the order of the calibration samples, and that of
training. Differences to float come with their paired standard error over the evaluation samples.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from shared_nets import NAMES, SharedNet, load_net, paired_standard_error, top1

from mpq_compile.finetuning import finetune_session
from mpq_compile.progress import track
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session
from mpq_compile.training.defaults import BATCH_SIZE, EPOCHS, RATE
from mpq_compile.training.epochs import read_epochs
from mpq_compile.training.train import Schedule
from mpq_compile.types import Budget

MIXED = [f"w{bits}a8" for bits in (2, 3, 4, 5, 6, 8)]
SETTINGS = ("w8a8", "w4a8", "w3a8", "w2a8/w8a8", "4 bits", "3 bits")
_BATCH = 100
_FINETUNE = "+finetune"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting of a network, by one method. Accuracies in %, times in s."""

    net: str
    setting: str
    method: str
    top1: list[float]
    float_top1: float
    difference_error: float
    seconds: float

    def line(self) -> str:
        """Return the row as it is printed."""
        mean = statistics.fmean(self.top1)
        spread = max(self.top1) - min(self.top1)
        return (
            f"{self.net:10s} {self.setting:10s} {self.method:13s} {mean:6.2f}  spread "
            f"{spread:4.2f}  − float {mean - self.float_top1:+6.2f} ± {self.difference_error:.2f}"
            f"  in {self.seconds:.1f} s"
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


def found_by(session: Session, assignment: dict[str, str], method: str) -> None:
    """Let the session find weights for an assignment."""
    session.rounded_for(assignment)
    if method.endswith(_FINETUNE):
        inputs = torch.cat([batch.inputs[0] for batch in session.batches])
        data = read_epochs(inputs, session.network, BATCH_SIZE, session.seed)
        schedule = Schedule(epochs=EPOCHS, rate=RATE)
        session.keep(assignment, finetune_session(session, assignment, data, schedule).calibration)


@dataclass
class Bench:
    """One network; what several rows need is computed once."""

    net: SharedNet
    seeds: int
    _sessions: dict[tuple[str, int], Session] = field(default_factory=dict)

    def row(self, setting: str, method: str) -> Row:
        """Return one row: the same for each seed."""
        found, seconds, errors = [], [], []
        for seed in range(self.seeds):
            session = self._session(method, seed)
            assignment = assignment_of(session, setting)
            session.calibration_for(assignment)
            start = time.perf_counter()
            found_by(session, assignment, method)
            seconds.append(time.perf_counter() - start)
            hits = right(self.net, session, assignment)
            found.append(100 * float(hits.float().mean()))
            errors.append(paired_standard_error(hits, self._exact))
        return Row(
            net=self.net.name,
            setting=setting,
            method=method,
            top1=found,
            float_top1=100 * float(self._exact.float().mean()),
            difference_error=statistics.fmean(errors),
            seconds=statistics.median(seconds),
        )

    @cached_property
    def _exact(self) -> torch.Tensor:
        session = next(iter(self._sessions.values()))
        return right(self.net, session, None)

    def _session(self, method: str, seed: int) -> Session:
        if (method, seed) not in self._sessions:
            rounding = method.removesuffix(_FINETUNE)
            self._sessions[method, seed] = session_of(self.net, rounding, seed)
        return self._sessions[method, seed]


def main() -> None:
    """Measure what was asked for, print each row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default=",".join(NAMES))
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--methods", default="nearest,gptq")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000, help="evaluation images of CIFAR")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.nets.split(","):
        cifar = name.startswith("resnet")
        net = load_net(name, options.images if cifar else None, 1024 if cifar else 100)
        bench = Bench(net=net, seeds=options.seeds)
        for setting in options.settings.split(","):
            for method in options.methods.split(","):
                rows.append(bench.row(setting, method))
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

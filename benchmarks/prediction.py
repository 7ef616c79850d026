"""Predicted against measured latency of networks, and estimates of kernels never measured.

    python benchmarks/prediction.py [--nets resnet20,mobilenetv2,encoder] [--assignments 30]
        [--rounds 6] [--networks FOLDER] [--plot prediction.png]
        [--json FILE] [--shapes]

For each network, random mixed assignments are built, none of which the latency model has seen, and
timed in turns in three fresh processes, together with the assignments that the model is anchored
on. Assignments have random shares of the candidates, so that they spread from the fastest network
to the slowest. The repeat noise is the mean difference between two of the processes. ``--shapes``
adds the error of estimates on shapes left out, one at a time, of everything that the database has
of this device. A process may wait a minute for a busy machine, unless ``MPQ_PATIENCE`` says
otherwise: the default is meant for a few networks.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peer_nets import NETWORKS
from scipy.stats import spearmanr

from mpq_compile.anchors import anchor_assignments
from mpq_compile.building import build_plans
from mpq_compile.cost.estimate import ESTIMATORS, Table
from mpq_compile.cost.latency import Observation
from mpq_compile.cost.store import Store
from mpq_compile.progress import track
from mpq_compile.runtime.device import LocalDevice
from mpq_compile.runtime.fingerprint import kernel_hash, lowering_hash, toolchain_hash
from mpq_compile.runtime.timing import by_process
from mpq_compile.runtime.verify import time_settled
from mpq_compile.session import Session

PROCESSES = 3
_PATIENCE_S = 60
# Networks that are built before the first of them is saved.
_AT_ONCE = 8
CANDIDATES = ("fp32", "bf16", "w8a8", "w4a8")
# The goals: mean error, error relative to the repeat noise, rank correlation; shapes left out.
MEAN_ERROR, NOISE_FACTOR, RANK, SHAPE_ERROR = 0.03, 1.5, 0.98, 0.15


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative errors of predictions."""

    mean: float
    p95: float
    bias: float
    rank: float

    @classmethod
    def of(cls, predicted: np.ndarray, measured: np.ndarray) -> Errors:
        relative = predicted / measured - 1
        return cls(
            mean=float(np.abs(relative).mean()),
            p95=float(np.percentile(np.abs(relative), 95)),
            bias=float(relative.mean()),
            rank=float(spearmanr(predicted, measured)[0]),
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one network showed. Times in ms."""

    net: str
    sites: int
    noise: float
    model: Errors
    plain_sum: Errors
    coverage: float
    measured_ms: Sequence[float]
    predicted_ms: Sequence[float]
    interval_ms: Sequence[tuple[float, float]]
    plain_ms: Sequence[float]

    @property
    def limit(self) -> float:
        """The mean error that is allowed: 3 %, or 1.5 times the repeat noise if that is larger."""
        return max(MEAN_ERROR, NOISE_FACTOR * self.noise)

    @property
    def kept(self) -> bool:
        """True where all goals are kept."""
        errors = self.model
        return errors.mean <= self.limit and errors.p95 <= 2 * self.limit and errors.rank >= RANK


def random_assignments(session: Session, count: int, seed: int) -> list[dict[str, str]]:
    """Return assignments with random shares of the candidates."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        shares = generator.dirichlet(np.ones(len(CANDIDATES)))
        names = generator.choice(CANDIDATES, size=len(session.choices), p=shares)
        found.append(
            {
                site: str(name) if name in choice else choice[0]
                for (site, choice), name in zip(session.choices.items(), names, strict=True)
            }
        )
    return found


def build_all(
    session: Session, assignments: Sequence[Mapping[str, str]], folder: Path
) -> list[Path]:
    """Build the networks into folders named by what they are, unless they are there already."""
    places = [folder / _digest(session, assignment) for assignment in assignments]
    pairs = zip(places, assignments, strict=True)
    new = [(place, assignment) for place, assignment in pairs if not place.exists()]
    for start in track(range(0, len(new), _AT_ONCE), "build networks"):
        some = new[start : start + _AT_ONCE]
        plans = [session.bare_plan(dict(assignment)) for _, assignment in some]
        for (place, _), network in zip(some, build_plans(session, plans), strict=True):
            network.save(place)
    return places


def _digest(session: Session, assignment: Mapping[str, str]) -> str:
    text = f"{session.digest()}{sorted(assignment.items())}{kernel_hash()}{lowering_hash()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def medians_of(session: Session, folders: Sequence[Path], rounds: int) -> np.ndarray:
    """Return the latency in ms of each network, by process and network, drift taken out.

    Each fresh process loads all networks anew: where their memory lies is a matter of luck that
    lasts as long as the process.
    """
    timings = time_settled(session.device, folders, rounds, PROCESSES)
    return by_process(timings).T


def noise_of(medians: np.ndarray) -> float:
    """Return the mean relative difference between two processes."""
    pairs = itertools.combinations(medians, 2)
    return float(np.mean([np.abs(a / b - 1).mean() for a, b in pairs]))


def run(name: str, count: int, rounds: int, seed: int, folder: Path) -> Result:
    """Predict and measure one network; what is built stays in ``folder``."""
    net = NETWORKS[name]
    session = Session(
        net.build(), net.samples(1, 7), [net.samples(1, 9)], candidates=CANDIDATES, tuned=False
    )
    model = session.costing.latency_prior
    anchors = list(anchor_assignments(session, model.costs).values())
    held_out = random_assignments(session, count, seed)
    folders = build_all(session, [*anchors, *held_out], folder)
    medians = medians_of(session, folders, rounds)
    measured = np.median(medians, axis=0)
    seen = [
        Observation(assignment=assignment, latency_us=1e3 * ms)
        for assignment, ms in zip(anchors, measured[: len(anchors)], strict=True)
    ]
    learned, found = model.learned(seen), measured[len(anchors) :]
    predictions = [learned.predict(assignment, same_run=True) for assignment in held_out]
    predicted = np.array([p.mean_us / 1e3 for p in predictions])
    plain = np.array([model.alone_us(assignment) / 1e3 for assignment in held_out])
    intervals = [(low / 1e3, high / 1e3) for low, high in (p.interval_us for p in predictions)]
    inside = [low <= ms <= high for (low, high), ms in zip(intervals, found, strict=True)]
    return Result(
        net=name,
        sites=len(session.choices),
        noise=noise_of(medians),
        model=Errors.of(predicted, found),
        plain_sum=Errors.of(plain, found),
        coverage=float(np.mean(inside)),
        measured_ms=list(map(float, found)),
        predicted_ms=list(map(float, predicted)),
        interval_ms=intervals,
        plain_ms=list(map(float, plain)),
    )


def shape_errors() -> dict[str, dict[str, float]]:
    """Return errors on shapes left out one at a time, by estimator, of what is known of here."""
    device = LocalDevice()
    with Store() as store:
        table = Table.of(store.items(), device.fingerprint, toolchain_hash(), kernel_hash())
    found = {}
    for name, make in ESTIMATORS.items():
        errors = table.left_out_errors(make, folds=None)
        found[name] = {
            "kernels": len(errors),
            "shapes": len({f.shape for f in table.features}),
            "median": float(np.median(errors)),
            "p90": float(np.percentile(errors, 90)),
        }
    return found


def show(result: Result) -> None:
    """Print one network."""
    print(
        f"{result.net}: {result.sites} sites, {len(result.measured_ms)} assignments of "
        f"{min(result.measured_ms):.3f} to {max(result.measured_ms):.3f} ms, "
        f"repeat noise {100 * result.noise:.1f} %"
    )
    for label, errors in (("model", result.model), ("sum of layers", result.plain_sum)):
        print(
            f"  {label:14s} mean error {100 * errors.mean:5.1f} %  95th percentile "
            f"{100 * errors.p95:5.1f} %  bias {100 * errors.bias:+5.1f} %  rank {errors.rank:.4f}"
        )
    verdict = "kept" if result.kept else "missed"
    print(
        f"  goals (mean ≤ {100 * result.limit:.1f} %, 95th ≤ {200 * result.limit:.1f} %, rank ≥ "
        f"{RANK}): {verdict}; {100 * result.coverage:.0f} % within the 95 % interval"
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw predicted against measured."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 4.6), squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        measured, predicted = np.array(result.measured_ms), np.array(result.predicted_ms)
        low, high = np.array(result.interval_ms).T
        axis.errorbar(
            measured, predicted, (predicted - low, high - predicted), fmt="o", ms=4, label="model"
        )
        axis.plot(measured, result.plain_ms, "x", color="0.5", label="sum of layers")
        ends = [0.95 * measured.min(), 1.05 * measured.max()]
        axis.plot(ends, ends, color="0.3", linewidth=0.8)
        axis.set(title=result.net, xlabel="measured, ms", ylabel="predicted, ms")
        axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the networks, print, draw and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default="resnet20,mobilenetv2,encoder")
    parser.add_argument("--assignments", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=6, help="in each of three processes")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--networks", type=Path, help="keep what is built here, and use it again")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--shapes", action="store_true", help="error of estimates too")
    options = parser.parse_args()
    os.environ.setdefault("MPQ_PATIENCE", str(_PATIENCE_S))
    results = []
    with tempfile.TemporaryDirectory(prefix="mpq-prediction-") as scratch:
        folder = options.networks or Path(scratch)
        for name in options.nets.split(","):
            results.append(run(name, options.assignments, options.rounds, options.seed, folder))
            show(results[-1])
    shapes = shape_errors() if options.shapes else {}
    for name, errors in shapes.items():
        print(
            f"{name}: median error {100 * errors['median']:.1f} %, 90th percentile "
            f"{100 * errors['p90']:.1f} %, each of {errors['shapes']} shapes left out "
            f"({errors['kernels']} kernels)"
        )
    if options.plot:
        draw(results, options.plot)
    if options.json:
        data = {"networks": [asdict(result) for result in results], "shapes": shapes}
        options.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

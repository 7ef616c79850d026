"""How well each metric ranks assignments: its predicted loss against the true loss.

    python benchmarks/sensitivity.py [--nets resnet20,dscnn] [--assignments 200] [--keep FOLDER]

Predicted is the sum of the metric's losses (pairs included), true the rise of the cross-entropy on
labelled images that no metric saw, and the divergence from float there. One half of the assignments
draws each site's candidate uniformly; the other half draws a mix of candidates for each assignment
first, so that mean bits range widely. Prints Spearman's rank correlation with either loss for each
half, the time of each metric, and for ``pairwise`` the gain over its own losses without pairs.
With ``--keep`` true losses are written as they are made, and read again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from shared_nets import NAMES, SharedNet, load_net
from torch import Tensor

from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import Network, prepare
from mpq_compile.progress import track
from mpq_compile.quant.calibration import Calibration
from mpq_compile.registry import METRICS
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.pairwise import PairwiseMetric
from mpq_compile.types import SensitivityTable

CANDIDATES = ("w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w8a8")
# In mixes, 2 bits are rarer than the others: several such sites destroy any of the networks.
WEIGHTS = (0.15, 1.0, 1.5, 1.0, 1.0, 0.5)
IMAGES = {"resnet20": 400, "resnet32": 400, "squeezenet": 200, "dscnn": 400}
PAIRWISE = {
    "pairwise, all": {"scope": "all"},
    "pairwise, gauss_newton": {"form": "gauss_newton"},
    "pairwise, gauss_newton, all": {"form": "gauss_newton", "scope": "all"},
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One network with its calibration data, labelled, and its evaluation data."""

    net: SharedNet
    network: Network
    calibration: Calibration
    batches: tuple[Batch, ...]
    images: Tensor
    labels: Tensor

    @property
    def sites(self) -> list[str]:
        """Ids of the sites."""
        return [site.id for site in self.network.sites]


def load(name: str, images: int, samples: int) -> Task:
    """Load a network; it is calibrated on ``samples`` at most."""
    net = load_net(name, images)
    network = prepare(capture(net.model, net.example))
    labels = net.calibration_labels[:samples]
    batches = read_batches([(net.calibration[:samples], labels)], network)
    return Task(
        net=net,
        network=network,
        calibration=calibrate(network, batches),
        batches=batches,
        images=net.images[:images],
        labels=net.labels[:images],
    )


def draw(sites: int, count: int, seed: int) -> np.ndarray:
    """Return candidates by number, [count, sites]: first half uniform, second half mixes."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(CANDIDATES), (count, sites))
    for row in drawn[count // 2 :]:
        mix = rng.dirichlet(np.ones(len(CANDIDATES))) * WEIGHTS
        row[:] = rng.choice(len(CANDIDATES), sites, p=mix / mix.sum())
    return drawn


def true_losses(task: Task, assignments: np.ndarray, keep: Path | None) -> np.ndarray:
    """Return the rise of the cross-entropy and the divergence from float, [count, 2]."""
    graph = QuantizedGraph(task.network, task.calibration)
    exact = log_probabilities(graph, task, {})
    stored = np.load(keep) if keep and keep.exists() else np.zeros((0, 2))
    losses = [tuple(row) for row in stored[: len(assignments)]]
    for row in track(assignments[len(losses) :], f"true losses of {task.net.name}"):
        named = {site: CANDIDATES[c] for site, c in zip(task.sites, row, strict=True)}
        found = log_probabilities(graph, task, named)
        right = torch.arange(len(task.labels)), task.labels
        rise = (exact[right] - found[right]).mean()
        losses.append((float(rise), float((exact.exp() * (exact - found)).sum(1).mean())))
        if keep:
            np.save(keep, np.array(losses))
    return np.array(losses)


def log_probabilities(graph: QuantizedGraph, task: Task, assignment: dict[str, str]) -> Tensor:
    """Return the network's log-probabilities, float64 [images, classes]."""
    graph.assign(assignment)
    with torch.no_grad():
        outputs = [graph.module(x)[0] for x in task.images.split(50)]
    return torch.cat(outputs).flatten(1).double().log_softmax(1)


def measure(task: Task, make: Any) -> tuple[SensitivityTable, float]:
    """Return a metric's table and the seconds that it took."""
    choices = dict.fromkeys(task.sites, CANDIDATES)
    start = time.perf_counter()
    table = make()(task.network, task.calibration, task.batches, choices)
    return table, time.perf_counter() - start


def predict(task: Task, table: SensitivityTable, assignments: np.ndarray, pairs: bool) -> Tensor:
    """Return the predicted loss of each assignment."""
    totals = []
    for row in assignments:
        named = {site: CANDIDATES[c] for site, c in zip(task.sites, row, strict=True)}
        total = sum(table.loss[site][name] for site, name in named.items())
        if pairs:
            total += sum(t[named[a], named[b]] for (a, b), t in table.pairs.items())
        totals.append(total)
    return torch.tensor(totals)


def correlations(predicted: Sequence[float], true: np.ndarray) -> list[float]:
    """Return rank correlations: both halves against cross-entropy, then against divergence."""
    half = len(true) // 2
    values = np.asarray(predicted)
    return [
        float(spearmanr(values[part], true[part, column]).statistic)
        for column in (0, 1)
        for part in (slice(0, half), slice(half, None))
    ]


def report(name: str, options: argparse.Namespace) -> None:
    """Print the table of one network."""
    images = options.images or IMAGES[name]
    task = load(name, images, options.samples)
    drawn = draw(len(task.sites), options.assignments, options.seed)
    keep = None
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        keep = options.keep / f"{name}_{images}_{options.samples}_{options.seed}.npy"
    true = true_losses(task, drawn, keep)
    used = sum(len(batch.inputs[0]) for batch in task.batches)
    print(f"\n{name}: {len(drawn)} assignments, {images} images, calibrated on {used}")
    print(f"{'metric':<30}{'uniform CE':>11}{'mixes CE':>10}{'uniform KL':>12}{'mixes KL':>10}   s")
    names = options.metrics.split(",") if options.metrics else list(METRICS)
    makers = {metric: METRICS.load(metric) for metric in names}
    if "pairwise" in makers:
        makers |= {key: _variant(fields) for key, fields in PAIRWISE.items()}
    for label, make in makers.items():
        table, seconds = measure(task, make)
        rows = {label: predict(task, table, drawn, pairs=True)}
        if table.pairs and "all" not in label:
            rows[f"{label} without pairs"] = predict(task, table, drawn, pairs=False)
        for text, predicted in rows.items():
            a, b, c, d = correlations(predicted, true)
            time_s = f"{seconds:6.1f}" if text == label else ""
            print(f"{text:<30}{a:>11.3f}{b:>10.3f}{c:>12.3f}{d:>10.3f}{time_s}", flush=True)


def _variant(fields: dict[str, str]) -> Any:
    return lambda: PairwiseMetric(**fields)  # type: ignore[arg-type]


def main() -> None:
    """Print one table a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="resnet20", help=f"of {','.join(NAMES)}, or all")
    parser.add_argument("--metrics", help="default: all that are registered")
    parser.add_argument("--assignments", type=int, default=200)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--images", type=int, help="evaluation samples; default 400 or 200")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for true losses")
    options = parser.parse_args()
    for name in NAMES if options.nets == "all" else options.nets.split(","):
        report(name, options)


if __name__ == "__main__":
    main()

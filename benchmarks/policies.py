"""Do policies that are searched on digits hold on CIFAR? Top-1 of ResNet-20 at equal BOPs.

    python benchmarks/policies.py [--bits w3a3] [--samples 1024] [--epochs 6] [--random 20]
        [--images 1000] [--seeds 1] [--json FILE]

ResNet-20, trained on CIFAR, is trained for a moment on scikit-learn's digits (8 × 8, brought to
32 × 32 × 3). There a policy is searched, sharpness-aware (``asga``) and not (``plain``), with room
for the BOPs of ``--bits`` at every site; site ids carry it over to the network on CIFAR, whose
weights are rounded (``gptq``, 256 training images) and not trained. Beside them stand random
policies whose BOPs are within 1 % of that, the uniform one, and, as a yardstick, what the ``kl``
metric and the exact solver choose with CIFAR's own calibration images. What is judged is the
integer oracle, on test images; a difference between two rows has a standard error of about 1 %
with 1,000 images.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accuracy import right
from shared_nets import SharedNet, load_net
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mpq_compile.progress import track
from mpq_compile.registry import SEARCHES
from mpq_compile.search.likeliest import assignment_bops, bops_of
from mpq_compile.search.options import SearchOptions
from mpq_compile.searching import search_session
from mpq_compile.session import Session
from mpq_compile.training.epochs import read_epochs
from mpq_compile.types import Budget, Candidate

NAMES = [f"w{w}a{a}" for w in (2, 3, 4, 5, 6, 8) for a in (3, 4, 5, 6, 8)]
WITHIN = 0.01
CALIBRATION = 256


@dataclass(frozen=True, kw_only=True)
class Row:
    """A policy on CIFAR. Accuracies in %; ``bops`` over those of the uniform policy."""

    policy: str
    seed: int
    top1: float
    bops: float
    mean_weight_bits: float
    search_s: float = 0.0

    def line(self) -> str:
        """Return the row as it is printed."""
        took = f"  searched in {self.search_s:.0f} s" if self.search_s else ""
        return (
            f"{self.policy:10s} seed {self.seed:2d}  top-1 {self.top1:6.2f}  BOPs {self.bops:.3f}"
            f"  {self.mean_weight_bits:.2f} bits a weight{took}"
        )


def digits(samples: int) -> tuple[Tensor, Tensor]:
    """Return digits as the network takes images: float32 [N, 3, 32, 32], int64 [N]."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:samples]
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8)[order] / 16
    x = F.interpolate(x, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    return ((x - x.mean()) / x.std()).contiguous(), torch.from_numpy(labels).long()[order]


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int = 2) -> float:
    """Train in place; return the share (%) of samples that come out right at the end."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(1)
    model.train()
    for _ in track(range(epochs), "train on digits"):
        for chosen in torch.randperm(len(x), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def random_policies(session: Session, bops: float, count: int) -> Iterator[dict[str, str]]:
    """Yield random assignments, changed at random sites until their BOPs are within 1 %."""
    generator, sites = random.Random(0), session.network.sites
    for _ in range(count):
        chosen = {site.id: generator.choice(NAMES) for site in sites}
        while abs(excess := assignment_bops(session.network, chosen) - bops) > WITHIN * bops:
            site, name = generator.choice(sites), generator.choice(NAMES)
            change = bops_of(site, name) - bops_of(site, chosen[site.id])
            if abs(excess + change) < abs(excess):
                chosen[site.id] = name
        yield chosen


class Bench:
    """CIFAR's network, on which policies are judged."""

    def __init__(self, net: SharedNet, bits: str) -> None:
        self.net = net
        self.session = Session(
            net.model,
            net.example,
            [net.calibration],
            target="bit_serial",
            candidates=NAMES,
            metric="kl",
        )
        sites = self.session.network.sites
        self.uniform = {site.id: bits for site in sites}
        self.bops = assignment_bops(self.session.network, self.uniform)

    def row(
        self, policy: str, assignment: Mapping[str, str], seed: int = 0, search_s: float = 0.0
    ) -> Row:
        """Round the weights for an assignment and judge it; print and return the row."""
        hits = right(self.net, self.session, assignment)
        sites = self.session.network.sites
        bits = sum(s.weight_count * Candidate.parse(assignment[s.id]).weight_bits for s in sites)
        row = Row(
            policy=policy,
            seed=seed,
            top1=100 * float(hits.float().mean()),
            bops=assignment_bops(self.session.network, assignment) / self.bops,
            mean_weight_bits=bits / sum(s.weight_count for s in sites),
            search_s=search_s,
        )
        print(row.line(), flush=True)
        return row


def searched(
    bench: Bench, model: nn.Module, x: Tensor, y: Tensor, options: SearchOptions, seed: int
) -> Row:
    """Search on digits, move the policy to CIFAR."""
    start = time.perf_counter()
    session = Session(
        model, x[:1], [(x, y)], target="bit_serial", candidates=NAMES, metric="kl", seed=seed
    )
    data = read_epochs([(x, y)], session.network, 32, seed)
    policy = search_session(session, data, options)
    took = time.perf_counter() - start
    assignment = policy.assignment_for(bench.session.network)
    return bench.row(options.method, assignment, seed, took)


def main() -> None:
    """Print each row when it is there, then what the random ones reach together."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", default="w3a3", help="uniform candidate whose BOPs are allowed")
    parser.add_argument("--samples", type=int, default=1024, help="digits")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(load_net("resnet20", options.images, CALIBRATION), options.bits)
    hits = right(bench.net, bench.session, None)
    print(f"float top-1 {100 * float(hits.float().mean()):.2f} on {len(hits)} images")
    x, y = digits(options.samples)
    model = load_net("resnet20", 1, 1).model
    print(f"{train(model, x, y):.1f} % of {len(x)} digits right after training", flush=True)
    rows = [bench.row("uniform", bench.uniform)]
    own = bench.session.solve(Budget(bops=bench.bops))
    rows.append(bench.row("kl, exact", own.assignment))
    for seed in range(options.seeds):
        for method in SEARCHES:
            how = SearchOptions(method=method, bops=bench.bops, epochs=options.epochs)
            rows.append(searched(bench, model, x, y, how, seed))
    policies = random_policies(bench.session, bench.bops, options.random)
    drawn = [bench.row("random", policy, seed) for seed, policy in enumerate(policies)]
    if drawn:
        reached = [row.top1 for row in drawn]
        print(
            f"{len(drawn)} random policies: mean {statistics.fmean(reached):.2f}, "
            f"best {max(reached):.2f}, worst {min(reached):.2f}"
        )
    if options.json:
        text = json.dumps([asdict(row) for row in [*rows, *drawn]], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

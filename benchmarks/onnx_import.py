"""The pretrained networks, from their modules and from their ONNX files: are they the same?

    python benchmarks/onnx_import.py [NETWORK …] [--samples 200] [--candidate w8a8]

Exports each network, compiles it both ways, and prints the top-1 of both, by how much their outputs
differ at most (in the largest output), and how many codes of weights differ. Exporters fold batch
norms in float32, which moves a folded weight by an ulp, and a code where it lay between two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shared_nets import NAMES, SharedNet, load_net, top1

import mpq_compile as mpq
from mpq_compile.session import Session
from mpq_compile.types import Candidate


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one way of compiling gave."""

    network: Any
    weights: dict[str, torch.Tensor]


def export(net: SharedNet, path: Path) -> Path:
    """Write the network's file, its batch free."""
    axes = {"x": {0: "batch"}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.model, (net.example,), path, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    return path


def compiled(model: Any, net: SharedNet, candidate: str) -> Outcome:
    """Build one candidate everywhere, rounded to nearest: what differs then is the import."""
    recipe = {"rounding": "nearest", "correction": "none"}
    network = mpq.assign(
        model, net.example, net.calibration.split(32), candidate, tuned=False, **recipe
    )
    session = Session(model, net.example, net.calibration.split(32))
    choice = Candidate.parse(candidate)
    sites = [site.id for site in session.network.sites]
    codes = {site: session.network.rounded(site, choice).codes for site in sites}
    return Outcome(network=network, weights=codes)


def report(net: SharedNet, candidate: str, folder: Path) -> str:
    """Return a row of the table."""
    file = compiled(export(net, folder / f"{net.name}.onnx"), net, candidate)
    module = compiled(net.model, net, candidate)
    scores = [way.network(net.images) for way in (module, file)]
    right = [100.0 * float(top1(values, net.labels).double().mean()) for values in scores]
    gap = float((scores[0] - scores[1]).abs().max() / scores[0].abs().max())
    same_sites = list(module.weights) == list(file.weights)
    differing = sum(int((c != file.weights[site]).sum()) for site, c in module.weights.items())
    total = sum(c.numel() for c in module.weights.values())
    return (
        f"| {net.name} | {len(net.images)} | {candidate} | {right[0]:.2f} | {right[1]:.2f} "
        f"| {gap:.1e} | {differing}/{total} | {'yes' if same_sites else 'no'} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NAMES))
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--candidate", default="w8a8")
    options = parser.parse_args()
    print("| network | samples | candidate | module | file | difference | codes | same sites |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            net = load_net(name, evaluation=options.samples)
            print(report(net, options.candidate, Path(folder)), flush=True)


if __name__ == "__main__":
    main()

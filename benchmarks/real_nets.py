"""The four networks on real data: accuracy, equality with the oracle, stored size.

    python benchmarks/real_nets.py [--nets resnet20,dscnn] [--candidates w8a8,w4a8]

Prints one row a network and candidate: top-1 of float and of the deployed network (%), their
difference with its paired standard error, how many samples' outputs equal the PyTorch oracle bit
for bit, and the bytes of the stored weights beside Σ bits/8 + 4 · scales + 4 · biases.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from shared_nets import NAMES, SharedNet, load_net, paired_standard_error, top1
from torch import Tensor

from mpq_compile.pipeline import assign_session
from mpq_compile.runtime.network import CompiledNetwork
from mpq_compile.session import Session

SAMPLES = {"resnet20": 1000, "resnet32": 1000, "squeezenet": 400, "dscnn": 400}
BATCH = 50
HEAD = ("network", "samples", "candidate", "float", "top-1", "drop", "± se", "equal", "bytes")


def scores(run: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """Return the outputs of all images, [N, classes]."""
    with torch.no_grad():
        return torch.cat([run(x).flatten(1) for x in images.split(BATCH)])


def expected_bytes(session: Session, network: CompiledNetwork) -> float:
    """Return what the packed weights, their scales and the biases take."""
    rows = {row.site: row.stored_bits for row in network.audit}
    weights = sum(
        site.weight_count * rows[site.id] / 8 + 4 * site.out_channels
        for site in session.network.sites
    )
    return weights + sum(4 * s.shape[0] for s in network.manifest.sites.values() if s.has_bias)


def measure(net: SharedNet, candidates: list[str]) -> list[tuple[str, ...]]:
    """Return the table's rows of one network."""
    session = Session(net.model, net.example, [net.calibration])
    exact = top1(scores(net.model, net.images), net.labels)
    rows = []
    for candidate in candidates:
        network = assign_session(session, candidate)
        found = scores(network, net.images)
        right = top1(found, net.labels)
        equal = int((found == scores(network.reference, net.images)).all(1).sum())
        drop = 100 * float(exact.double().mean() - right.double().mean())
        rows.append(
            (
                net.name,
                str(len(net.labels)),
                candidate,
                f"{100 * float(exact.double().mean()):.2f}",
                f"{100 * float(right.double().mean()):.2f}",
                f"{drop:+.2f}",
                f"{paired_standard_error(right, exact):.2f}",
                f"{equal}/{len(net.labels)}",
                f"{network.size_bytes:,} ({expected_bytes(session, network):,.0f})",
            )
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default=",".join(NAMES))
    parser.add_argument("--candidates", default="w8a8,w4a8")
    options = parser.parse_args()
    print(" | ".join(HEAD))
    for name in options.nets.split(","):
        for row in measure(load_net(name, SAMPLES[name]), options.candidates.split(",")):
            print(" | ".join(row), flush=True)


if __name__ == "__main__":
    main()

"""Top-1 of pretrained networks whose channels are badly scaled, by what evens their scales out.

    python benchmarks/equalization.py [--nets resnet20,…] [--settings w8a8,w4a8]
        [--roundings nearest,gptq] [--seeds 2] [--images 2000]

A disturbed network computes what it did: each channel between two sites is divided by a random
factor from 0.1 to 10 (log-uniform), and multiplied back where it is read. A seed draws the factors
and the order of the calibration samples. What is judged is the integer oracle.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from itertools import product

import torch
from accuracy import assignment_of, right
from shared_nets import NAMES, SharedNet, load_net, paired_standard_error

from mpq_compile.passes.balance import EQUALIZATIONS
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import rescale
from mpq_compile.passes.seams import find_seams
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session


def disturbed(network: Network, seed: int) -> Network:
    """Return a network of the same function with other factors on its seams."""
    generator = torch.Generator().manual_seed(seed)
    seams = find_seams(network)
    factors = {
        seam.producer: 10 ** (2 * torch.rand(len(seam.free), generator=generator) - 1)
        for seam in seams
    }
    return rescale(network, seams, factors)


def hits(
    net: SharedNet, badly_scaled: bool, recipe: Recipe, setting: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which samples the quantized and the float network have right."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(net.calibration), generator=generator)
    session = Session(
        net.model,
        net.example,
        [net.calibration[order]],
        target="bit_serial",
        candidates=[setting],
        recipe=recipe,
        seed=seed,
    )
    if badly_scaled:
        session._prepared = disturbed(session._prepared, seed)
    return right(net, session, assignment_of(session, setting)), right(net, session, None)


def rows(net: SharedNet, settings: list[str], roundings: list[str], seeds: int) -> Iterator[str]:
    """Yield the table's rows of a network."""
    for badly_scaled, setting, rounding, name in product(
        (False, True), settings, roundings, EQUALIZATIONS
    ):
        recipe = Recipe(rounding=rounding, equalize=name)
        found = [hits(net, badly_scaled, recipe, setting, seed) for seed in range(seeds)]
        drops = [100 * float((a.float() - b.float()).mean()) for a, b in found]
        error = statistics.fmean(paired_standard_error(a, b) for a, b in found)
        state = "disturbed" if badly_scaled else "as it is"
        yield (
            f"{net.name:10s} {state:9s} {setting} {rounding:8s} {name:11s} − float "
            f"{statistics.fmean(drops):+6.2f} ± {error:.2f}  "
            f"({', '.join(f'{drop:+.2f}' for drop in drops)})"
        )


def main() -> None:
    """Print each row when it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", default=",".join(NAMES))
    parser.add_argument("--settings", default="w8a8,w4a8")
    parser.add_argument("--roundings", default="nearest,gptq")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=2000, help="evaluation images of CIFAR")
    options = parser.parse_args()
    for name in options.nets.split(","):
        cifar = name.startswith("resnet")
        net = load_net(name, options.images if cifar else None, 512 if cifar else 100)
        for row in rows(
            net, options.settings.split(","), options.roundings.split(","), options.seeds
        ):
            print(row, flush=True)


if __name__ == "__main__":
    main()

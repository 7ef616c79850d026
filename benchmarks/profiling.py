"""How long it takes to profile a network from an empty database, and how well the times are known.

    python benchmarks/profiling.py [--network resnet18] [--candidates fp32,bf16,w8a8,w4a8]

Prints the time of ``mpq.profile`` (tuning and whole networks included), the intervals of the
medians, and how long a second session takes to look all costs up, which measures nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from peer_nets import NETWORKS, PeerNet

from mpq_compile.cost.drift import REFERENCE
from mpq_compile.cost.store import Store
from mpq_compile.profiling import Profiled, profile
from mpq_compile.session import Session


def main() -> None:
    """Profile the network in a database of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet18", choices=NETWORKS)
    parser.add_argument("--candidates", default="fp32,bf16,w8a8,w4a8")
    arguments = parser.parse_args()
    network, names = NETWORKS[arguments.network], arguments.candidates.split(",")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPQ_DB"] = str(Path(folder) / "empty.sqlite")
        os.environ["MPQ_SHIPPED"] = "0"
        module, samples = network.build(), network.samples(8, seed=3)
        done = profile(module, samples[:1], [samples], candidates=names)
        print(f"{network.name}: profiled in {done.seconds:.1f} s, {done.new} measurements")
        show_intervals(done)
        show_lookup(network, names)


def show_intervals(done: Profiled) -> None:
    """Print how many samples there are and how wide the intervals of the medians became."""
    with Store(done.database, read_only=True) as store:
        rows = [(key, value) for key, value in store.items() if value.half_width is not None]
        looks = store.get_many(k for k, _ in rows if k.operator == REFERENCE.operator)
    kernels = [v for k, v in rows if "schedule" not in k.operator and k not in looks]
    widths = sorted(100 * value.half_width for value in kernels if value.half_width is not None)
    counts = [value.count for value in kernels]
    print(
        f"{len(kernels)} kernels: half-width of the median's 95 % interval, in % of the median: "
        f"median {statistics.median(widths):.2f}, largest {widths[-1]:.2f}, "
        f"{sum(width <= 1.5 for width in widths)} within 1.5"
    )
    print(
        f"samples a kernel: median {statistics.median(counts):.0f}, most {max(counts)}; outliers "
        f"{sum(v.outliers or 0 for v in kernels)} of {sum(counts)}; repeated with the reference "
        f"off {sum(v.repeated or 0 for v in kernels)}; not settled "
        f"{sum(not v.settled for v in kernels)}"
    )


def show_lookup(network: PeerNet, names: list[str]) -> None:
    """Print how long a second session takes to look its costs up."""
    samples = network.samples(8, seed=3)
    session = Session(network.build(), samples[:1], [samples], candidates=names)
    assert session.network.sites  # captured before the clock starts
    with Store() as store:
        before = store.items()
    start = time.perf_counter()
    assert session.costs.costs
    seconds = time.perf_counter() - start
    with Store() as store:
        assert store.items() == before, "a second session measured something"
    print(f"costs of a second session, nothing measured: {seconds:.2f} s")


if __name__ == "__main__":
    main()

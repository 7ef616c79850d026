"""Sensitivities and fits of sites by one process, by two, and by two of which one is killed.

    python benchmarks/distributed.py [--net resnet20] [--metrics kl,gauss_newton] [--samples 256]
        [--ranks 2] [--die-after-s 10] [--lease-s 5]

Prints the seconds of each stage, their ratio to one process, the units that each rank computed, and
whether tables (losses and their standard errors) and codes are equal, bit for bit. Each process has
one thread, so two need two cores. The first stage of several processes holds the wait for the
slowest to read network and data; a killed one costs its lease.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

RANK = Path(__file__).with_name("distributed_rank.py")
ROOT = RANK.parents[1]


def run(options: argparse.Namespace, ranks: int, die_after_s: float | None = None) -> Any:
    """Start processes as a launcher does, and return what rank 0 printed."""
    command = [sys.executable, str(RANK), "--net", options.net, "--metrics", options.metrics]
    command += ["--samples", str(options.samples), "--lease-s", str(options.lease_s)]
    if die_after_s is not None:
        command += ["--die-after-s", str(die_after_s)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **fixed, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    texts = [process.communicate()[0] for process in started]
    ends = [process.returncode for process in started]
    print(f"exit codes {ends}")
    return json.loads(texts[0])


def show(title: str, found: Any, alone: Any) -> None:
    """Print the seconds of each stage beside those of one process, and whether all is equal."""
    print(f"{title}: units by rank {found['units'] or 'all'}")
    for stage, seconds in found["seconds"].items():
        ratio = alone["seconds"][stage] / seconds
        equal = found["hashes"][stage] == alone["hashes"][stage]
        print(f"  {stage:<14}{seconds:8.2f} s   {ratio:5.2f} ×   equal: {equal}")


def main() -> None:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--metrics", default="kl,gauss_newton")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--die-after-s", type=float, default=10.0)
    parser.add_argument("--lease-s", type=float, default=5.0)
    options = parser.parse_args()
    alone = run(options, 1)
    show("one process", alone, alone)
    show(f"{options.ranks} processes", run(options, options.ranks), alone)
    killed = run(options, options.ranks, options.die_after_s)
    show(f"{options.ranks} processes, the last killed", killed, alone)


if __name__ == "__main__":
    main()

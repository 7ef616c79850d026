"""One process of ``distributed.py``: sensitivities of a shared network, and fits of its sites."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping

import torch
from shared_nets import load_net

import mpq_compile as mpq
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

CANDIDATES = [f"w{bits}a8" for bits in (2, 3, 4, 5, 6, 8)]


def main() -> None:
    """Rank 0 prints, as JSON: seconds by stage, hashes of what was found, units of each rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", required=True)
    parser.add_argument("--metrics", required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--lease-s", type=float, required=True)
    parser.add_argument("--die-after-s", type=float, help="of the last rank, once it is ready")
    options = parser.parse_args()
    # Nothing is taken from an earlier run.
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="mpq_distributed_")
    torch.set_num_threads(1)
    net = load_net(options.net, calibration=options.samples)
    data = list(zip(net.calibration.split(64), net.calibration_labels.split(64), strict=True))
    last = os.environ.get("RANK") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)
    if options.die_after_s is not None and last:
        threading.Timer(options.die_after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
    with mpq.distributed(lease_s=options.lease_s) as ranks:
        session = Session(
            net.model,
            net.example,
            data,
            "bit_serial",
            CANDIDATES,
            recipe=Recipe(sensitivity_on="rounded"),
        )
        seconds, hashes = measured(session, options.metrics.split(","))
    if ranks.leads:
        print(json.dumps({"seconds": seconds, "hashes": hashes, "units": ranks.units}))


def measured(session: Session, metrics: list[str]) -> tuple[Mapping[str, float], Mapping[str, str]]:
    """Return how long each stage took, and a hash of what it found."""
    session.calibration_for(session.choices)  # each rank has its own; not shared
    start = time.perf_counter()
    fits = session.fitted_for(session.choices)
    found = hashlib.sha256()
    for key in sorted(fits.weights, key=repr):
        found.update(fits.weights[key].codes.numpy().tobytes())
        found.update(fits.weights[key].scale.numpy().tobytes())
    seconds, hashes = {"fits": time.perf_counter() - start}, {"fits": found.hexdigest()}
    for metric in metrics:
        start = time.perf_counter()
        table = session.sensitivity_by(metric)
        seconds[metric] = time.perf_counter() - start
        hashes[metric] = hashlib.sha256(repr((table.loss, table.spread)).encode()).hexdigest()
    return seconds, hashes


if __name__ == "__main__":
    main()

"""What the processes of test_distributed.py run: tables and fits of a small network, as JSON.

    ranks_program.py METRIC,… WEIGHTS [RANK dies | stranger]

``RANK dies`` kills that rank when it has taken a unit; with ``stranger`` the last rank has
other data.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

import mpq_compile as mpq
from mpq_compile.integrations.work_queue import WorkQueue
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

LEASE_S = 1.0


def network() -> nn.Module:
    """Return three convolutions and a linear layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    ends = [nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*layers, *ends).eval()


def before_each_unit(act: Callable[[], None]) -> None:
    """Let something happen when this process has taken a unit, before it computes it."""
    claims = WorkQueue.claims

    def acting(queue: WorkQueue) -> Iterator[int]:
        for number in claims(queue):
            act()
            yield number

    WorkQueue.claims = acting  # type: ignore[method-assign]


def opened(metric: str, weights: str, seed: int) -> Session:
    """Return a session; its data are of a seed."""
    x = torch.randn(96, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    data = [(part, part.mean((1, 2, 3)).gt(0).long()) for part in x.split(16)]
    return Session(
        network(),
        x[:1],
        data,
        "x86_64_vnni",
        ["w8a8", "w4a8", "w2a8"],
        metric=metric,
        recipe=Recipe(sensitivity_on=weights),
    )


def digest(session: Session) -> str:
    """Return a hash of the codes, scales, gains and shifts of all fits."""
    found = hashlib.sha256()
    calibration = session.seen_for(session.choices)
    for key, weight in sorted(calibration.weights.items(), key=repr):
        fit = calibration.fits[key]
        for value in (weight.codes, weight.scale, fit.gain, fit.shift):
            found.update(value.numpy().tobytes())
    return found.hexdigest()


def main(metrics: str, weights: str, *mode: str) -> None:
    """Print tables, the hash of fits, and the units of each rank."""
    rank = os.environ.get("RANK", "0")
    if mode == (rank, "dies"):  # as killed by the kernel
        before_each_unit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif "RANK" in os.environ:  # units are small: each rank leaves some to the others
        before_each_unit(lambda: time.sleep(0.03))
    seed = int(rank) if mode == ("stranger",) else 0
    tables = {}
    with mpq.distributed(lease_s=LEASE_S) as ranks:
        session = opened(metrics.split(",")[0], weights, seed)
        for metric in metrics.split(","):
            table = session.sensitivity_by(metric)
            pairs = {" ".join(key): str(value) for key, value in table.pairs.items()}
            tables[metric] = {"loss": table.loss, "spread": table.spread, "pairs": pairs}
        fits = digest(session)
    if ranks.leads:
        print(json.dumps({"tables": tables, "fits": fits, "units": ranks.units}))
        return
    assert not tables, "a rank that helps runs no further than its session"


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a call through ``torch.compile(backend="mpq")`` costs above the artifact's own.

    python benchmarks/backend_overhead.py [--net resnet20] [--candidate w8a8] [--rounds 30]

The same network three ways in turns in one process: its artifact (``mpq.assign``), the model that
``torch.compile`` returned, and a backend that does nothing, which is what Dynamo's guards and its
lifted arguments cost by themselves. Prints medians of blocks in µs, differences paired by round,
and whether both networks agree bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from shared_nets import NAMES, load_net
from torch import Tensor, fx

import mpq_compile as mpq
from mpq_compile.integrations import torch_backend as torch_backend

CALLS, WARM_UP = 100, 20
LIMIT_US = 60.0


def block_us(run: Callable[[Tensor], Any], x: Tensor) -> float:
    """Return the median latency of a block of calls in µs."""
    for _ in range(WARM_UP):
        run(x)
    samples = []
    for _ in range(CALLS):
        start = time.perf_counter()
        run(x)
        samples.append((time.perf_counter() - start) * 1e6)
    return statistics.median(samples)


def nothing(result: Tensor) -> Callable[..., Any]:
    """Return a backend that returns ``result`` whatever is asked of it."""

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return lambda *args: (result,)

    return backend


def main() -> None:
    """Print medians and differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=NAMES, default="resnet20")
    parser.add_argument("--candidate", default="w8a8")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    net = load_net(options.net, 8)
    model, x, data = net.model.eval(), net.example.clone(), [net.calibration[:64]]
    artifact = mpq.assign(model, x, data, options.candidate)
    asked = {"assignment": options.candidate, "calibration": data, "verify": False}
    compiled = torch.compile(model, backend="mpq", options=asked)
    with torch.inference_mode():
        equal = torch.equal(compiled(x), artifact(x))
        # Code that was compiled for one backend is not run by another.
        idle = torch.compile(model, backend=nothing(artifact(x)))
        runs = {"artifact": artifact, "torch.compile": compiled, "Dynamo alone": idle}
        rows = [[block_us(run, x) for run in runs.values()] for _ in range(options.rounds)]
    columns = dict(zip(runs, zip(*rows, strict=True), strict=True))
    for name, column in columns.items():
        low, middle, high = statistics.quantiles(column, n=4)
        print(f"{name:14s} {middle:8.1f} µs  [{low:.1f}, {high:.1f}]")
    above = [ours - own for own, ours, _ in rows]
    ratio = statistics.median(ours / own for own, ours, _ in rows)
    print(
        f"above the artifact's own call: {statistics.median(above):.1f} µs "
        f"(aim {LIMIT_US:g}), ratio {ratio:.3f}; equal bit for bit: {equal}"
    )


if __name__ == "__main__":
    main()

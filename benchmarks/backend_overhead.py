"""What a call through ``torch.compile(backend="mpq")`` costs above the artifact's own.

    python benchmarks/backend_overhead.py [--net resnet20] [--candidate w8a8] [--rounds 30]

The same network in turns in one process: its artifact (``mpq.assign``), the model that
``torch.compile`` returned, the same with PyTorch's own filter of guards on built-in modules, and a
backend that does nothing, which is what Dynamo's guards and its lifted arguments cost by
themselves while they stay in the cache. Prints medians of blocks in µs, differences paired by
round, and whether both networks agree bit for bit.
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
    unguarded = torch.compiler.skip_guard_on_inbuilt_nn_modules_unsafe
    filtered = torch.compile(model, backend="mpq", options={**asked, "guard_filter_fn": unguarded})
    with torch.inference_mode():
        equal = all(torch.equal(run(x), artifact(x)) for run in (compiled, filtered))
        # Code that was compiled for one backend is not run by another.
        idle = torch.compile(model, backend=nothing(artifact(x)))
        runs = {
            "artifact": artifact,
            "torch.compile": compiled,
            "fewer guards": filtered,
            "Dynamo alone": idle,
        }
        rows = [[block_us(run, x) for run in runs.values()] for _ in range(options.rounds)]
    columns = dict(zip(runs, zip(*rows, strict=True), strict=True))
    for name, column in columns.items():
        low, middle, high = statistics.quantiles(column, n=4)
        print(f"{name:14s} {middle:8.1f} µs  [{low:.1f}, {high:.1f}]")
    for place, name in ((1, "torch.compile"), (2, "fewer guards")):
        above = statistics.median(row[place] - row[0] for row in rows)
        ratio = statistics.median(row[place] / row[0] for row in rows)
        print(f"{name}: {above:.1f} µs above the artifact (aim {LIMIT_US:g}), ratio {ratio:.3f}")
    print(f"equal bit for bit: {equal}")


if __name__ == "__main__":
    main()

"""Time of the matrix-multiply kernels, and of torch float32, on one set of shapes.

Prints one row a workload: median microseconds of int8, bf16 and fp32 here and of torch eager
fp32, all interleaved in one run, GMAC/s of each of ours, and torch's time over each of ours.
Then one row a few-row linear layer: 8-, 4- and 2-bit weights, in cache and from memory.

    python benchmarks/kernels.py [--only TEXT] [--rounds 5] [--tier NAME] [--no-torch]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

THREADS = os.environ.setdefault("TVM_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

# ruff: noqa: E402  (TVM reads TVM_NUM_THREADS when it is imported)
import numpy as np
import torch
import tvm

from mpq_compile.kernels.matmul import generate
from mpq_compile.kernels.packing import (
    packed_weight_size,
    record_words,
)
from mpq_compile.kernels.tier import Tier, detect_tier, tier_named
from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload

DTYPES = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}
PAUSE_S = 0.25  # lets the other runtime's spinning threads fall asleep
SLICE_S = 0.03


def conv(size: int, channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1):
    """Return a square convolution with 'same' padding."""
    pad = (kernel - 1) // 2
    return ConvWorkload(
        batch=1,
        height=size,
        width=size,
        in_channels=channels,
        out_channels=out,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(pad,) * 4,
        groups=groups,
    )


def linear(rows: int, inputs: int, outputs: int):
    """Return a linear layer."""
    return LinearWorkload(rows=rows, in_features=inputs, out_features=outputs)


WORKLOADS: dict[str, Workload] = {
    "cifar stem 3>16@32": conv(32, 3, 16),
    "cifar 16@32": conv(32, 16, 16),
    "cifar 16>32@32 s2": conv(32, 16, 32, stride=2),
    "cifar 32@16": conv(16, 32, 32),
    "cifar 64@8": conv(8, 64, 64),
    "stem 3>64@224 7x7 s2": conv(224, 3, 64, kernel=7, stride=2),
    "64@56": conv(56, 64, 64),
    "64>128@56 s2": conv(56, 64, 128, stride=2),
    "128@28": conv(28, 128, 128),
    "256@14": conv(14, 256, 256),
    "512@7": conv(7, 512, 512),
    "64>256@56 1x1": conv(56, 64, 256, kernel=1),
    "256>64@56 1x1": conv(56, 256, 64, kernel=1),
    "1024>256@14 1x1": conv(14, 1024, 256, kernel=1),
    "depthwise 32@112": conv(112, 32, 32, groups=32),
    "depthwise 96@112 s2": conv(112, 96, 96, stride=2, groups=96),
    "depthwise 384@14": conv(14, 384, 384, groups=384),
    "depthwise 240@28 5x5": conv(28, 240, 240, kernel=5, groups=240),
    "resnext 128@28 g32": conv(28, 128, 128, groups=32),
    "linear 1x2048x1000": linear(1, 2048, 1000),
    "linear 1x2048x2048": linear(1, 2048, 2048),
    "linear 128x384x384": linear(128, 384, 384),
    "linear 128x768x768": linear(128, 768, 768),
    "linear 128x768x3072": linear(128, 768, 3072),
}


LOW_BIT_SIZES = ((1024, 1024), (2048, 2048), (4096, 4096), (4096, 11008))
LOW_BIT_KINDS: dict[str, dict] = {
    "int8": {},
    "int8 g128": {"group_size": 128},
    "weight-only": {"compute": "weight_only"},
}
# Weights in rotation, so that each call reads them from memory.
ROTATION_BYTES = 128 * 2**20


def kernel_call(workload: Workload, tier: Tier) -> Callable[[int], float]:
    """Compile a kernel; return a function that gives the seconds of one call over n calls."""
    program = tvm.compile(generate(workload, tier, int(THREADS)), target=target_of(tier))
    inputs = {"int8": "u8", "fp32": "fp32"}.get(workload.compute, "bf16")
    size, dtype = packed_weight_size(workload, tier)
    arrays = [np.ones(workload.input_size, DTYPES[inputs]), np.ones(size, dtype)]
    arrays.append(np.zeros(record_words(workload, tier), np.int32))
    arrays.append(np.zeros(workload.output_size, DTYPES[workload.out]))
    tensors = [tvm.runtime.tensor(array) for array in arrays]

    def timed(calls: int) -> float:
        evaluator = program.mod.time_evaluator("main", tvm.cpu(), number=calls, repeat=1)
        return evaluator(*tensors).mean

    return timed


def target_of(tier: Tier) -> tvm.target.Target:
    """Return the TVM target of a tier."""
    return tvm.target.Target(tier.target(int(THREADS)))


def torch_call(workload: Workload) -> Callable[[int], float]:
    """Return the same measurement of torch eager fp32 (channels last)."""
    if isinstance(workload, LinearWorkload):
        x = torch.randn(workload.rows, workload.in_features)
        layer: torch.nn.Module = torch.nn.Linear(workload.in_features, workload.out_features)
    else:
        shape = (workload.batch, workload.in_channels, workload.height, workload.width)
        x = torch.randn(shape).to(memory_format=torch.channels_last)
        layer = torch.nn.Conv2d(
            workload.in_channels, workload.out_channels, workload.kernel,
            stride=workload.stride, padding=workload.padding[:2], groups=workload.groups,
        ).to(memory_format=torch.channels_last)  # fmt: skip

    def timed(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            layer(x)
        return (time.perf_counter() - start) / calls

    return timed


def medians(calls: dict[str, Callable[[int], float]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each contestant, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, timed in calls.items():
            if "torch" in calls:
                time.sleep(PAUSE_S)
            timed(3)
            count = max(3, int(SLICE_S / max(timed(3), 1e-7)))
            seconds[name].append(timed(count))
    return {name: statistics.median(values) for name, values in seconds.items()}


def contestants(workload: Workload, tier: Tier, with_torch: bool) -> dict[str, Callable]:
    """Return the measurements of one row."""
    formats = {"int8": "u8", "bf16": "bf16", "fp32": "fp32"}
    calls: dict[str, Callable] = {
        name: kernel_call(replace(workload, compute=name, out=out), tier)  # type: ignore[arg-type]
        for name, out in formats.items()
    }
    if with_torch:
        calls["torch"] = torch_call(workload)
    return calls


def low_bit_call(workload: LinearWorkload, tier: Tier, copies: int) -> Callable[[int], float]:
    """Compile a kernel; return the seconds of one call, over ``copies`` sets of weights."""
    program = tvm.compile(generate(workload, tier, int(THREADS)), target=target_of(tier))
    inputs = "uint8" if workload.compute == "int8" else "uint16"
    size, dtype = packed_weight_size(workload, tier)
    weights = [tvm.runtime.tensor(np.ones(size, dtype)) for _ in range(copies)]
    x = tvm.runtime.tensor(np.ones(workload.input_size, inputs))
    record = tvm.runtime.tensor(np.zeros(record_words(workload, tier), np.int32))
    out = tvm.runtime.tensor(np.zeros(workload.output_size, np.float32))
    function = program["main"]

    def timed(calls: int) -> float:
        rounds = -(-calls // copies)
        start = time.perf_counter()
        for _ in range(rounds):
            for packed in weights:
                function(x, packed, record, out)
        return (time.perf_counter() - start) / (rounds * copies)

    return timed


def print_low_bit(tier: Tier, rounds: int) -> None:
    """Print the few-row layers: µs at 8, 4 and 2 bits, and the ratio of 8 bits to each."""
    print("one row, µs at 8, 4, 2 bits in cache | from memory | 8 bits ÷ 4, 2 bits from memory")
    for inputs, outputs in LOW_BIT_SIZES:
        for kind, options in LOW_BIT_KINDS.items():
            calls = {}
            for bits in (8, 4, 2):
                workload = LinearWorkload(
                    rows=1, in_features=inputs, out_features=outputs, weight_bits=bits,
                    out="fp32", **options,
                )  # fmt: skip
                copies = -(-ROTATION_BYTES // (inputs * outputs * bits // 8))
                calls[f"cache {bits}"] = low_bit_call(workload, tier, 1)
                calls[f"memory {bits}"] = low_bit_call(workload, tier, copies)
            micros = {name: value * 1e6 for name, value in medians(calls, rounds).items()}
            cache, memory = ([micros[f"{p} {b}"] for b in (8, 4, 2)] for p in ("cache", "memory"))
            ratios = [memory[0] / value for value in memory[1:]]
            columns = [" ".join(f"{v:8.1f}" for v in group) for group in (cache, memory)]
            text = " ".join(f"{ratio:5.2f}" for ratio in ratios)
            print(f"{inputs}x{outputs} {kind:12s} {columns[0]} | {columns[1]} | {text}", flush=True)


def print_row(name: str, macs: int, seconds: dict[str, float]) -> None:
    """Print times and rates of one workload."""
    times = " ".join(f"{value * 1e6:9.1f}" for value in seconds.values())
    ours = [value for key, value in seconds.items() if key != "torch"]
    rates = " ".join(f"{macs / value / 1e9:7.0f}" for value in ours)
    ratios = ""
    if "torch" in seconds:
        ratios = " ".join(f"{seconds['torch'] / value:6.2f}" for value in ours)
    print(f"{name:24s} {times} | {rates} | {ratios}", flush=True)


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tier", default="")
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    tier = tier_named(options.tier) if options.tier else detect_tier()
    torch.set_num_threads(int(THREADS))
    torch.set_grad_enabled(False)
    print(f"tier {tier.name}, {THREADS} threads; µs: int8, bf16, fp32, torch fp32 "
          "| GMAC/s: int8, bf16, fp32 | torch ÷ int8, bf16, fp32")  # fmt: skip
    for name, workload in WORKLOADS.items():
        if options.only in name:
            calls = contestants(workload, tier, not options.no_torch)
            print_row(name, workload.macs, medians(calls, options.rounds))
    if options.only in "low-bit":
        print_low_bit(tier, options.rounds)


if __name__ == "__main__":
    main()

"""Matrix-multiply kernels as a fraction of what this machine can do, measured in the same run.

First the peaks: multiply-adds a second of the tier's dot products out of registers, for int8, bf16
and fp32, and bytes a second of reading memory in order (``kernel_peaks``). Then one row a layer:
µs, GMAC/s and the fraction of the peak for int8, bf16 and fp32, in turns; with --torch also torch
eager fp32. Then one-row linears at 8, 4 and 2 bits of weights that rotate through more than the
caches hold: µs, GB/s of weights, the fraction of the bandwidth that reading in order has in the
same round, and the ratio to 8 bits.

    python benchmarks/kernels.py [--only TEXT] [--rounds 5] [--tier NAME] [--torch] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

THREADS = int(os.environ.setdefault("TVM_NUM_THREADS", str(min(2, os.cpu_count() or 1))))

# ruff: noqa: E402  (TVM reads TVM_NUM_THREADS when it is imported)
import numpy as np
import torch
import tvm
from kernel_peaks import Peaks, measure_peaks, ones, stream_rate
from kernel_workloads import GEMV_SIZES, WORKLOADS

from mpq_compile.kernels.matmul import generate
from mpq_compile.kernels.packing import packed_weight_size, record_words
from mpq_compile.kernels.tier import Tier, detect_tier, tier_named
from mpq_compile.kernels.workload import LinearWorkload, Workload
from mpq_compile.runtime.engine import placed
from mpq_compile.runtime.executor import request_amx

DTYPES = {"u8": "uint8", "bf16": "uint16", "fp32": "float32"}
FORMATS = {"int8": "u8", "bf16": "bf16", "fp32": "fp32"}
GEMV_KINDS: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8 g128": {"group_size": 128},
    "weight-only": {"compute": "weight_only"},
}
# Weights in rotation, so that each call reads them from memory.
ROTATION_BYTES = 1 << 30
PAUSE_S = 0.25  # lets the other runtime's spinning threads fall asleep
SLICE_S = 0.02


def target_of(tier: Tier) -> tvm.target.Target:
    """Return the TVM target of a tier."""
    return tvm.target.Target(tier.target(THREADS))


def kernel_call(workload: Workload, tier: Tier) -> Callable[[int], float]:
    """Compile a kernel; return a function that gives the seconds of one call over n calls."""
    program = tvm.compile(generate(workload, tier, THREADS), target=target_of(tier))
    size, dtype = packed_weight_size(workload, tier)
    arrays = [ones(workload.input_size, DTYPES[FORMATS[workload.compute]]), ones(size, dtype)]
    arrays.append(np.zeros(record_words(workload, tier), np.int32))
    arrays.append(np.zeros(workload.output_size, DTYPES[workload.out]))
    tensors = [tvm.runtime.from_dlpack(array) for array in placed(arrays)]

    def timed(calls: int) -> float:
        evaluator = program.mod.time_evaluator("main", tvm.cpu(), number=calls, repeat=1)
        return evaluator(*tensors).mean

    return timed


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


def samples(calls: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each contestant in every round, measured in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    counts: dict[str, int] = {}
    for _ in range(rounds):
        for name, timed in calls.items():
            if "torch" in calls:
                time.sleep(PAUSE_S)
            timed(3)
            if name not in counts:
                counts[name] = max(3, int(SLICE_S / max(timed(3), 1e-7)))
            seconds[name].append(timed(counts[name]))
    return seconds


def layer_row(
    name: str, workload: Workload, tier: Tier, peaks: Peaks, rounds: int, with_torch: bool
) -> dict[str, Any]:
    """Time one layer in every compute format."""
    calls: dict[str, Callable[[int], float]] = {
        compute: kernel_call(replace(workload, compute=compute, out=out), tier)  # type: ignore[arg-type]
        for compute, out in FORMATS.items()
    }
    if tier.narrow_sums:
        calls["4 bits"] = kernel_call(replace(workload, weight_bits=4), tier)
    if with_torch:
        calls["torch"] = torch_call(workload)
    seconds = {name: statistics.median(v) for name, v in samples(calls, rounds).items()}
    row: dict[str, Any] = {"name": name, "macs": workload.macs}
    for compute in FORMATS:
        rate = workload.macs / seconds[compute]
        row[compute] = {
            "us": seconds[compute] * 1e6,
            "gmacs": rate / 1e9,
            "fraction": rate / peaks.macs[compute],
        }
    if "4 bits" in seconds:
        row["times_int8"] = seconds["int8"] / seconds["4 bits"]
    if with_torch:
        row["torch_us"] = seconds["torch"] * 1e6
    return row


def gemv_call(workload: LinearWorkload, tier: Tier) -> tuple[Callable[[int], float], int, int]:
    """Compile a one-row kernel; return the measurement of a rotation of weights, the bytes of each
    and how many there are."""
    program = tvm.compile(generate(workload, tier, THREADS), target=target_of(tier))
    size, dtype = packed_weight_size(workload, tier)
    # Scales of groups are a share of what is read, and rotate too.
    words = record_words(workload, tier)
    bytes_each = size * np.dtype(dtype).itemsize + 4 * words
    copies = -(-ROTATION_BYTES // bytes_each)
    codes, record = np.ones(size, dtype), np.zeros(words, np.int32)
    parameters = [
        [tvm.runtime.from_dlpack(array) for array in placed([codes, record])] for _ in range(copies)
    ]
    inputs = "uint8" if workload.compute == "int8" else "uint16"
    x = tvm.runtime.tensor(ones(workload.input_size, inputs))
    out, function = tvm.runtime.tensor(np.zeros(workload.output_size, np.float32)), program["main"]

    def timed(rotations: int) -> float:
        # Whole ones, as the bandwidth is that of reading as much: the first calls after others'
        # memory was read run at half the speed of later ones.
        start = time.perf_counter()
        for _ in range(rotations):
            for codes_and_record in parameters:
                function(x, *codes_and_record, out)
        return (time.perf_counter() - start) / rotations

    return timed, bytes_each, copies


def gemv_rows(
    inputs: int, outputs: int, kind: str, tier: Tier, rounds: int
) -> list[dict[str, Any]]:
    """Time one-row linears at 8, 4 and 2 bits, and reading memory in order, in turns.

    The bandwidth of a shared machine changes by a factor of two within seconds: each round's rate
    is compared with the bandwidth of the same round.
    """
    stream = stream_rate(tier, THREADS)
    built = {}
    for bits in (8, 4, 2):
        workload = LinearWorkload(
            rows=1, in_features=inputs, out_features=outputs, weight_bits=bits,  # type: ignore[arg-type]
            out="fp32", **GEMV_KINDS[kind],
        )  # fmt: skip
        built[bits] = gemv_call(workload, tier)
    calls: dict[str, Callable[[int], float]] = {"stream": lambda _: 1 / stream()}
    seconds = samples(calls | {str(bits): call for bits, (call, *_) in built.items()}, rounds)
    w8 = [rotation / built[8][2] for rotation in seconds["8"]]
    rows = []
    for bits, (_, size, copies) in built.items():
        took = [rotation / copies for rotation in seconds[str(bits)]]
        rows.append(
            {
                "name": f"gemv {inputs}x{outputs} {kind} w{bits}",
                "us": statistics.median(took) * 1e6,
                "gbs": size / statistics.median(took) / 1e9,
                "fraction": _median_ratio([s * size for s in seconds["stream"]], took),
                "times_w8": _median_ratio(w8, took),
            }
        )
    return rows


def _median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the rounds of a quotient within one round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def show_peaks(tier: Tier, peaks: Peaks) -> str:
    """Return the peaks as one line."""
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in peaks.macs.items())
    return (f"tier {tier.name}, {THREADS} threads; peaks: {rates} GMAC/s; "
            f"memory {peaks.bytes / 1e9:.1f} GB/s")  # fmt: skip


def show_layer(row: dict[str, Any]) -> str:
    """Return one layer as a line of the table."""
    cells = [row[compute] for compute in FORMATS]
    columns = [f"{c['us']:9.1f} {c['gmacs']:6.0f} {100 * c['fraction']:4.0f}%" for c in cells]
    torch_us = f" | {row['torch_us']:9.1f}" if "torch_us" in row else ""
    narrow = f" | {row['times_int8']:5.2f}× int8" if "times_int8" in row else ""
    return f"{row['name']:34s} {' | '.join(columns)}{narrow}{torch_us}"


def show_gemv(row: dict[str, Any]) -> str:
    """Return one one-row linear as a line of the table."""
    return (f"{row['name']:34s} {row['us']:9.1f} µs {row['gbs']:6.1f} GB/s "
            f"{100 * row['fraction']:4.0f}%  {row['times_w8']:5.2f}× w8")  # fmt: skip


def run(options: argparse.Namespace, tier: Tier, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure what was asked for; return all of it."""
    peaks = measure_peaks(tier, THREADS)
    say(show_peaks(tier, peaks))
    narrow = " | weights of 4 bits" if tier.narrow_sums else ""
    say(f"{'':34s} {'int8 µs, GMAC/s, of peak':>22s} | bf16 | fp32{narrow}")
    layers: list[dict[str, Any]] = []
    for name, workload in WORKLOADS.items():
        if options.only in name:
            layers.append(layer_row(name, workload, tier, peaks, options.rounds, options.torch))
            say(show_layer(layers[-1]))
    gemv: list[dict[str, Any]] = []
    for inputs, outputs in GEMV_SIZES:
        for kind in GEMV_KINDS:
            if options.only in f"gemv {inputs}x{outputs} {kind}":
                gemv += gemv_rows(inputs, outputs, kind, tier, options.rounds)
                say("\n".join(map(show_gemv, gemv[-3:])))
    return {"tier": tier.name, "threads": THREADS, "peaks": asdict(peaks), "layers": layers,
            "gemv": gemv}  # fmt: skip


def main() -> None:
    """Parse the command line and print the tables, or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tier", default="", help="a tier of this machine; the best by default")
    parser.add_argument("--torch", action="store_true", help="time torch eager fp32 beside ours")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    tier = tier_named(options.tier) if options.tier else detect_tier()
    if tier.dot == "amx":
        request_amx()
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    stream = sys.stderr if options.json else sys.stdout
    result = run(options, tier, lambda line: print(line, file=stream, flush=True))
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Time of the attention and layer norm kernels, and of torch's own, in turns in one run.

Prints one row a shape: median microseconds of u8, bf16 and fp32 here and of torch fp32.

    python benchmarks/attention.py [--rounds 5] [--no-torch]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

THREADS = int(os.environ.setdefault("TVM_NUM_THREADS", str(min(2, os.cpu_count() or 1))))

# ruff: noqa: E402  (TVM reads TVM_NUM_THREADS when it is imported)
import numpy as np
import torch
import torch.nn.functional as F
import tvm

from mpq_compile.kernels import attention, layer_norm
from mpq_compile.kernels.attention_workload import AttentionWorkload, heads_last
from mpq_compile.kernels.elementwise_workload import NormWorkload
from mpq_compile.kernels.emit import FORMAT_DTYPE
from mpq_compile.kernels.packing import pack_attention, pack_convert
from mpq_compile.kernels.tier import detect_tier
from mpq_compile.runtime.engine import placed
from mpq_compile.runtime.executor import request_amx

PAUSE_S = 0.25  # lets the other runtime's spinning threads fall asleep
SLICE_S = 0.03
FORMATS = {"int8": "u8", "bf16": "bf16", "fp32": "fp32"}
# heads, queries, keys, columns of a head
SHAPES = (
    (12, 128, 128, 32),
    (12, 128, 128, 64),
    (12, 197, 197, 64),
    (12, 512, 512, 64),
    (8, 2048, 2048, 64),
    (12, 1, 512, 64),
)
NORMS = ((128, 384), (197, 768), (512, 1024))
OUTPUTS = (("fp32",), ("u8",), ("fp32", "u8"))


def attention_call(shape: tuple[int, int, int, int], compute: str) -> Callable[[int], float]:
    """Compile a kernel; return a function that gives the seconds of one call over n calls."""
    heads, queries, keys, depth = shape
    query, key = heads_last(1, heads, queries, depth), heads_last(1, heads, keys, depth)
    fmt = FORMATS[compute]
    work = AttentionWorkload(
        batch=1,
        heads=heads,
        queries=queries,
        keys=keys,
        depth=depth,
        value_depth=depth,
        compute=compute,  # type: ignore[arg-type]
        out=fmt,  # type: ignore[arg-type]
        q=query,
        k=key,
        v=key,
        output=query,
    )
    tier = detect_tier()
    if tier.dot == "amx":
        request_amx()
    program = tvm.compile(attention.generate(work, tier, THREADS), target=tier.target(THREADS))
    arrays = [np.ones(layout.size, FORMAT_DTYPE[fmt]) for layout in (query, key, key)]
    arrays.append(pack_attention((0, 0, 0), 1e-5, 1.0, (0.0, 255.0)))
    arrays.append(np.zeros(query.size, FORMAT_DTYPE[fmt]))
    return repeated(program, [tvm.runtime.from_dlpack(array) for array in placed(arrays)])


def torch_call(shape: tuple[int, int, int, int]) -> Callable[[int], float]:
    """Return the same for ``F.scaled_dot_product_attention`` of views into [T, heads · D]."""
    heads, queries, keys, depth = shape
    q, k, v = (torch.ones(1, rows, heads, depth).transpose(1, 2) for rows in (queries, keys, keys))
    return looped(lambda: F.scaled_dot_product_attention(q, k, v))


def norm_call(rows: int, columns: int, outputs: tuple[str, ...]) -> Callable[[int], float]:
    """Return the same for a layer norm of fp32 rows that is stored in ``outputs``."""
    work = NormWorkload(
        rows=rows,
        columns=columns,
        epsilon=1e-5,
        source="fp32",
        outputs=outputs,  # type: ignore[arg-type]
    )
    tier = detect_tier()
    program = tvm.compile(layer_norm.generate(work, tier, THREADS), target=tier.target(THREADS))
    records = [pack_convert(0, 1.0, (-100.0, 100.0), 100)] * (1 + len(outputs))
    arrays = [np.random.default_rng(0).normal(size=rows * columns).astype(np.float32)]
    arrays += [np.concatenate(records), *(np.ones(columns, np.float32) for _ in range(2))]
    arrays += [np.zeros(rows * columns, FORMAT_DTYPE[fmt]) for fmt in outputs]
    return repeated(program, [tvm.runtime.from_dlpack(array) for array in placed(arrays)])


def torch_norm_call(rows: int, columns: int) -> Callable[[int], float]:
    """Return the same for ``F.layer_norm``."""
    x, ones = torch.randn(rows, columns), torch.ones(columns)
    return looped(lambda: F.layer_norm(x, [columns], ones, ones))


def repeated(program: Any, tensors: list[Any]) -> Callable[[int], float]:
    """Return a function that gives the seconds of one call of a kernel over n calls."""

    def timed(calls: int) -> float:
        evaluator = program.mod.time_evaluator("main", tvm.cpu(), number=calls, repeat=1)
        return evaluator(*tensors).mean

    return timed


def looped(function: Callable[[], Any]) -> Callable[[int], float]:
    """Return a function that gives the seconds of one call of Python over n calls."""

    def timed(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - begin) / calls

    return timed


def interleaved(calls: dict[str, Callable[[int], float]], rounds: int) -> dict[str, float]:
    """Return the median microseconds of each call, taken in turns."""
    counts = {name: max(3, int(SLICE_S / call(3))) for name, call in calls.items()}
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE_S if name == "torch" else 0)
            call(1)
            seen[name].append(call(counts[name]) * 1e6)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(f"{'heads × Tq × Tk × D':24}{'int8':>9}{'bf16':>9}{'fp32':>9}{'torch':>9}   (µs)")
    for shape in SHAPES:
        calls = {compute: attention_call(shape, compute) for compute in FORMATS}
        if not options.no_torch:
            calls["torch"] = torch_call(shape)
        times = interleaved(calls, options.rounds)
        row = "".join(f"{value:9.1f}" for value in times.values())
        print(f"{' × '.join(map(str, shape)):24}{row}")
    print(f"{'rows × columns':24}{'fp32':>9}{'u8':>9}{'fp32+u8':>9}{'torch':>9}   (µs)")
    for rows, columns in NORMS:
        norms = {"+".join(o): norm_call(rows, columns, o) for o in OUTPUTS}
        if not options.no_torch:
            norms["torch"] = torch_norm_call(rows, columns)
        times = interleaved(norms, options.rounds)
        row = "".join(f"{value:9.1f}" for value in times.values())
        print(f"{f'{rows} × {columns}':24}{row}")


if __name__ == "__main__":
    main()

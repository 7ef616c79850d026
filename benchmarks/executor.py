"""What it costs to go from one kernel to the next, and what that makes of whole networks.

    python benchmarks/executor.py [--nets resnet20,mobilenetv2] [--rounds 9]

First the time between two kernels of no work: a fork and a join for each, TVM's own barrier, and
ours (ns). Then each network with random weights, all w8a8, on Relax's virtual machine and as one
function, in turns (µs, with the quartiles of the rounds).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mpq_compile.runtime.threads import thread_count

THREADS = thread_count()

# ruff: noqa: E402  (TVM reads its thread count when it is imported)
import numpy as np
import tvm
from peer_nets import NETWORKS
from tvm import relax
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.deploy import complete_assignment
from mpq_compile.kernels.barrier import FLAG_WORDS, arrive, barrier_ir, wait
from mpq_compile.kernels.emit import llvm_functions, store
from mpq_compile.kernels.tier import detect_tier
from mpq_compile.lower.entry import build_entry
from mpq_compile.lower.lowering import lower
from mpq_compile.lower.parameters import build_parameter
from mpq_compile.lower.pipeline import lower_pipeline
from mpq_compile.lower.program import read_program
from mpq_compile.passes.materialize import materialize
from mpq_compile.runtime.engine import Machine, Program
from mpq_compile.session import Session

STEPS = 50
TIER = detect_tier()
TARGET = tvm.target.Target(TIER.target(THREADS))
LAUNCH, BARRIER = "pragma_parallel_launch_point", "pragma_parallel_barrier_when_finish"


@contextmanager
def launched(kind: str) -> Iterator[None]:
    """Start the threads once, unless each step forks."""
    with nullcontext() if kind == "fork and join" else T.attr(T.int32(0), LAUNCH, 1):
        yield


def steps(kind: str) -> Any:
    """Return a program of ``STEPS`` tiny kernels that follow each other as ``kind`` says."""
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("x", T.buffer((FLAG_WORDS * THREADS,), "int32"))
        flags = T.arg("flags", T.buffer((FLAG_WORDS * THREADS,), "int32"))
        for task in range(THREADS):
            store(flags, task * FLAG_WORDS, 1, T.int32(0))
        with llvm_functions(barrier_ir(TIER)), launched(kind):
            for step in range(1, STEPS + 1):
                emit_step(kind, x, flags, step)
    return tvm.compile(builder.get(), target=TARGET)


def emit_step(kind: str, x: Any, flags: Any, step: int) -> None:
    """Emit one kernel, which adds one for each task, and what comes after it."""
    after = T.attr(T.int32(0), BARRIER, 1) if kind == "TVM's barrier" else nullcontext()
    with after, T.parallel(THREADS) as task:
        store(x, task * FLAG_WORDS, 1, x[task * FLAG_WORDS] + 1)
        if kind == "our barrier":
            arrive(flags.access_ptr("rw"), task, step)
    if kind == "our barrier":
        with T.parallel(THREADS):
            wait(flags.access_ptr("rw"), THREADS, step)


def between_kernels(rounds: int) -> None:
    """Print ns a step of each way."""
    for kind in ("fork and join", "TVM's barrier", "our barrier"):
        program = steps(kind)
        arrays = [tvm.runtime.tensor(np.zeros(FLAG_WORDS * THREADS, np.int32)) for _ in range(2)]
        timer = program.mod.time_evaluator("main", tvm.cpu(), number=200, repeat=rounds)
        nanoseconds = statistics.median(timer(*arrays).results) / STEPS * 1e9
        print(f"{kind:16s} {nanoseconds:7.0f} ns a kernel")


def engines(name: str, folder: str) -> tuple[list[Any], Any]:
    """Return the network on the virtual machine and as one function, and its input."""
    net = NETWORKS[name]
    example = net.samples(1, seed=3)
    session = Session(net.build(), example, [net.samples(4, seed=4)])
    assignment = complete_assignment(session.network, "w8a8")
    materialized = materialize(
        session.network,
        session.calibration_for({}),
        assignment,
    )
    lowered = lower(materialized, session.network.captured.example_inputs, TIER, THREADS)
    module = lower_pipeline(lowered.module, TIER, THREADS)
    entry = build_entry(module, read_program(module), TIER, THREADS)
    relax.build(module, TARGET, exec_mode="compiled").export_library(f"{folder}/machine.so")
    tvm.compile(entry.module, target=TARGET).export_library(f"{folder}/function.so")
    recipes = lowered.recipes
    parameters = [build_parameter(r, lowered.sites, lowered.arrays, TIER) for r in recipes]
    shapes = zip(lowered.output_shapes, lowered.output_dtypes, strict=True)
    outputs = [{"shape": shape, "dtype": dtype} for shape, dtype in shapes]
    function = Program(Path(folder, "function.so"), parameters, entry.arena, outputs, {})
    return [Machine(Path(folder, "machine.so"), parameters), function], example


def block_us(call: Callable[[], Any], seconds: float = 0.15) -> float:
    """Return the median time of calls for a while, after some to warm up."""
    samples, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples[len(samples) // 4 :]) * 1e6


def whole_network(name: str, rounds: int) -> None:
    """Print both ways of running a network."""
    with tempfile.TemporaryDirectory() as folder:
        pair, example = engines(name, folder)
        x = tvm.runtime.tensor(example.reshape(-1).numpy())
        rows = [[block_us(lambda run=run: run([x])) for run in pair] for _ in range(rounds)]
    text = []
    for column in zip(*rows, strict=True):
        low, middle, high = statistics.quantiles(column, n=4)
        text.append(f"{middle:8.1f} µs [{low:.1f}, {high:.1f}]")
    print(f"{name:12s} virtual machine {text[0]}   one function {text[1]}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="resnet20,mobilenetv2,encoder")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    between_kernels(options.rounds)
    for name in options.nets.split(","):
        whole_network(name, options.rounds)


if __name__ == "__main__":
    main()

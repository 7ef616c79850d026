"""What this machine can do at most: dot products out of registers, and reading memory in order.

The loops are TensorIR like the kernels, of the same micro-kernel steps (``kernels.microkernel``),
with as many independent accumulators as the registers hold, so that a kernel's fraction of the
peak says what its own code leaves on the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from mpq_compile.kernels.arguments import ELEMENT_BYTES
from mpq_compile.kernels.emit import llvm_functions, load, splat, store, vector
from mpq_compile.kernels.microkernel import DotStep, dot_step
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.tile_instructions import TILE_DTYPES, TileIntrinsics
from mpq_compile.kernels.workload import LinearWorkload
from mpq_compile.runtime.engine import placed

STREAM_BYTES = 1 << 30
ITERATIONS = 100_000
# Vectors of weights that the loop reads in turn: they stay in the L1 cache.
WEIGHT_VECTORS = 16
TILE_BYTES = 1024


def ones(size: int, dtype: str) -> np.ndarray:
    """Return ones; as uint16 those of bf16, where the bits 1 are a denormal number, which costs
    Intel's processors a hundred cycles in every product."""
    return np.full(size, 0x3F80 if dtype == "uint16" else 1, dtype)


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Multiply-adds a second by compute format, and bytes a second read from memory."""

    macs: dict[str, float]
    bytes: float


def measure_peaks(tier: Tier, threads: int, rounds: int = 7) -> Peaks:
    """Measure the peaks of a tier on ``threads`` threads: the best of ``rounds``."""
    calls = {c: _rate(tier, c, threads) for c in ("int8", "bf16", "fp32")}
    macs = {name: max(call() for _ in range(rounds)) for name, call in calls.items()}
    stream = stream_rate(tier, threads)
    return Peaks(macs=macs, bytes=max(stream() for _ in range(rounds)))


def int8_rate(tier: Tier, threads: int) -> Callable[[], float]:
    """Return a measurement, of milliseconds, of int8 multiply-adds a second."""
    return _rate(tier, "int8", threads)


def _rate(tier: Tier, compute: str, threads: int) -> Callable[[], float]:
    on_tiles = tier.dot == "amx" and compute in TILE_DTYPES
    return (_tile_peak if on_tiles else _dot_peak)(tier, compute, threads)


def _timed(function: Any, arrays: Sequence[np.ndarray], tier: Tier, threads: int, work: float):
    """Build a function; return a measurement of its ``work`` a second."""
    program = tvm.compile(function, target=tvm.target.Target(tier.target(threads)))
    tensors, main = [tvm.runtime.from_dlpack(array) for array in placed(arrays)], program["main"]
    main(*tensors)

    def rate() -> float:
        start = time.perf_counter()
        main(*tensors)
        return work / (time.perf_counter() - start)

    return rate


# Dot products


def _block(tier: Tier, step: DotStep) -> tuple[int, int]:
    """Return (inputs, weight vectors) of an accumulator block that leaves room for both."""
    inputs, vectors = (6, 4) if tier.registers >= 32 else (4, 2)
    return (inputs, vectors) if step.k_group > 1 or step.accumulator == "float32" else (2, 2)


def _dot_peak(tier: Tier, compute: str, threads: int) -> Callable[[], float]:
    """Return a measurement of multiply-adds a second of the tier's micro-kernel step."""
    workload = LinearWorkload(
        rows=64,
        in_features=64,
        out_features=64,
        compute=compute,
        out="fp32",  # type: ignore[arg-type]
    )
    step = dot_step(workload, tier)
    inputs, vectors = _block(tier, step)
    cells, size = inputs * vectors, step.lanes * step.k_group
    arrays = [
        ones(inputs * step.k_group, step.input_dtype),
        ones(WEIGHT_VECTORS * vectors * size, step.weight_dtype),
        np.arange(threads * cells * step.lanes).astype(step.accumulator),
    ]
    function = _dot_loop(step, inputs, vectors, [len(a) for a in arrays], threads)
    work = threads * ITERATIONS * cells * size
    return _timed(function, arrays, tier, threads, work)


def _dot_loop(
    step: DotStep, inputs: int, vectors: int, sizes: Sequence[int], threads: int
) -> Any:  # fmt: skip
    """Return main(X, W, O): every input times every weight vector, over and over."""
    lanes, size = step.lanes, step.lanes * step.k_group
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("X", T.buffer((sizes[0],), step.input_dtype))
        w = T.arg("W", T.buffer((sizes[1],), step.weight_dtype))
        out = T.arg("O", T.buffer((sizes[2],), step.accumulator))
        with llvm_functions(step.llvm_ir), T.parallel(threads) as task:
            pixels = [T.bind(step.pixel(x, i * step.k_group)) for i in range(inputs)]
            cells = [T.alloc_buffer((lanes,), step.accumulator) for _ in range(inputs * vectors)]
            for index, cell in enumerate(cells):
                at = (task * len(cells) + index) * lanes
                store(cell, 0, lanes, load(out, at, lanes))
            with T.serial(ITERATIONS) as k:
                at = T.bind(T.floormod(k, WEIGHT_VECTORS) * (vectors * size))
                for v in range(vectors):
                    weights = T.bind(step.weights(w, at + v * size))
                    for i, pixel in enumerate(pixels):
                        cell = cells[i * vectors + v]
                        store(cell, 0, lanes, step.add(load(cell, 0, lanes), pixel, weights))
            for index, cell in enumerate(cells):
                at = (task * len(cells) + index) * lanes
                store(out, at, lanes, load(cell, 0, lanes))
    return builder.get()


def _tile_peak(tier: Tier, compute: str, threads: int) -> Callable[[], float]:
    """Return a measurement of multiply-adds a second of AMX tile products in registers."""
    sums, inputs, weights = TILE_DTYPES[compute]
    unit = TileIntrinsics(compute=compute)
    elements = TILE_BYTES // ELEMENT_BYTES[inputs]
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("X", T.buffer((2 * elements,), inputs))
        w = T.arg("W", T.buffer((2 * elements,), weights))
        out = T.arg("O", T.buffer((threads * 4 * 256,), sums))
        with T.parallel(threads) as task:
            unit.begin()
            unit.configure(dict.fromkeys(range(8), 16))
            for tile in range(4):
                unit.zero(tile)
            for i in range(2):
                unit.load(4 + i, x, i * elements, elements // 16)
                unit.load(6 + i, w, i * elements, elements // 16)
            with T.serial(ITERATIONS):
                for tile in range(4):
                    unit.multiply(tile, 4 + tile // 2, 6 + tile % 2)
            for tile in range(4):
                unit.store(tile, out, (task * 4 + tile) * 256, 16)
            unit.end()
    arrays = [
        ones(2 * elements, inputs), ones(2 * elements, weights),
        np.zeros(threads * 4 * 256, sums),
    ]  # fmt: skip
    work = threads * ITERATIONS * 4 * 16 * 16 * (elements // 16)
    return _timed(builder.get(), arrays, tier, threads, work)


# Memory


def stream_rate(tier: Tier, threads: int) -> Callable[[], float]:
    """Return a measurement of bytes a second, each thread reading its share once in order."""
    lanes, unrolled = tier.lanes, 8
    words = STREAM_BYTES // 4
    share = words // threads // (lanes * unrolled)
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        x = T.arg("X", T.buffer((words,), "int32"))
        out = T.arg("O", T.buffer((threads * lanes,), "int32"))
        with T.parallel(threads) as task:
            cells = [T.alloc_buffer((lanes,), "int32") for _ in range(unrolled)]
            for cell in cells:
                store(cell, 0, lanes, splat(T.int32(0), lanes))
            with T.serial(share) as i:
                at = T.bind((task * share + i) * (lanes * unrolled))
                for index, cell in enumerate(cells):
                    value = load(x, at + index * lanes, lanes)
                    store(cell, 0, lanes, load(cell, 0, lanes) + value)
            total = T.cast(0, vector("int32", lanes))
            for cell in cells:
                total = total + load(cell, 0, lanes)
            store(out, task * lanes, lanes, total)
    arrays = [np.ones(words, np.int32), np.zeros(threads * lanes, np.int32)]
    return _timed(builder.get(), arrays, tier, threads, threads * share * lanes * unrolled * 4)

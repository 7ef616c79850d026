"""A fixed workload inside every library: whether the cores are as usual, beside the network.

Every task multiplies and adds vectors that stay in registers: what that takes depends on the
clock, and on who else uses the vector units of its core. Then it walks through a table along
several ways at once, as many instructions a cycle as a core issues: what that takes depends on
whether another thread of the core issues instructions too, of whatever kind; vectors alone leave
room for those. Then all tasks meet at the barrier of networks, many times: what that takes depends
on how far apart their cores are. On a shared machine two virtual cores are at times two threads of
one core, and at times cores of two chips; networks then take up to twice their time, while work
that waits for its own results (a hash) takes as long as ever.
"""

from __future__ import annotations

from typing import Any

from tvm.ir import IRModule
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.target import Target
from tvm.tirx import PrimFunc

from mpq_compile.kernels.barrier import FLAG_WORDS, arrive, barrier_ir, wait
from mpq_compile.kernels.emit import llvm_functions
from mpq_compile.kernels.tier import Tier
from mpq_compile.lower.entry import LAUNCH
from mpq_compile.lower.interface import (
    REFERENCE,
    REFERENCE_CELLS,
    REFERENCE_FLAGS,
    REFERENCE_TABLE,
)

# Chains that do not wait for each other, enough of them to keep two pipelines of four steps busy,
# and not more than AVX2 has registers for.
_LANES = 16
_CHAINS = REFERENCE_CELLS // _LANES
# Ways through the table: as many lookups at once as there are registers for, or as a compiler makes
# vectors of.
_WAYS = 10
# About a tenth of a millisecond each, and half of that for meetings of cores that share a cache.
_STEPS, _LOOKUPS, _MEETINGS = 40_000, 16_000, 500


def with_reference(module: IRModule, tier: Tier, tasks: int) -> IRModule:
    """Return the module with the workload added, a function of cells, tables and flags of tasks."""
    return IRModule({**module.functions, REFERENCE: _function(tier, tasks)}, attrs=module.attrs)


def _function(tier: Tier, tasks: int) -> PrimFunc:
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name(REFERENCE)
        cells = T.arg("cells", T.buffer((tasks * REFERENCE_CELLS,), "float32"))
        table = T.arg("table", T.buffer((tasks * REFERENCE_TABLE,), "int32"))
        flags = T.arg("flags", T.buffer((tasks * REFERENCE_FLAGS,), "int32"))
        for task in range(tasks):
            T.buffer_store(flags, T.int32(0), [task * FLAG_WORDS])
        with llvm_functions(barrier_ir(tier) if tasks > 1 else ""):
            _body(cells, table, flags, tasks)
    function = builder.get().with_attr("target", Target(tier.target(tasks)))
    return function.with_attr({"global_symbol": REFERENCE, "tirx.noalias": True})


def _body(cells: Any, table: Any, flags: Any, tasks: int) -> None:
    if tasks == 1:
        _multiply(cells, 0)
        _walk(table, 0)
        return
    pointer = flags.access_ptr("rw")
    with T.attr(T.int32(0), LAUNCH, 1):
        with T.parallel(tasks) as task:
            _multiply(cells, task)
            _walk(table, task)
        with T.serial(_MEETINGS) as meeting:
            # Two loops, as in networks: a pool of fewer threads than tasks must not wait for ever.
            with T.parallel(tasks) as task:
                arrive(pointer, task, meeting + 1)
            with T.parallel(tasks) as task:
                wait(pointer, tasks, meeting + 1)


def _multiply(cells: Any, task: Any) -> None:
    chains = T.alloc_buffer((REFERENCE_CELLS,), "float32")
    half = T.broadcast(T.float32(0.5), _LANES)
    starts = [chain * _LANES for chain in range(_CHAINS)]
    for start in starts:
        own = T.ramp(task * REFERENCE_CELLS + start, 1, _LANES)
        T.buffer_store(chains, cells[own], [T.ramp(start, 1, _LANES)])
    with T.serial(_STEPS):
        for start in starts:
            at = T.ramp(start, 1, _LANES)
            T.buffer_store(chains, chains[at] * half + half, [at])
    for start in starts:
        own = T.ramp(task * REFERENCE_CELLS + start, 1, _LANES)
        T.buffer_store(cells, chains[T.ramp(start, 1, _LANES)], [own])


def _walk(table: Any, task: Any) -> None:
    """Follow each way, which ends in the cell of its number: ``at = table[(at + way) % size]``.

    No lookup depends on where it finds its number, and none leaves the task's own table.
    """
    places = T.alloc_buffer((_WAYS,), "int32")
    for way in range(_WAYS):
        T.buffer_store(places, table[task * REFERENCE_TABLE + way], [way])
    with T.serial(_LOOKUPS):
        for way in range(_WAYS):
            step = T.bitwise_and(places[way] + way, T.int32(REFERENCE_TABLE - 1))
            T.buffer_store(places, table[task * REFERENCE_TABLE + step], [way])
    for way in range(_WAYS):
        T.buffer_store(table, places[way], [task * REFERENCE_TABLE + way])

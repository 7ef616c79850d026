"""Scaled dot product attention: keys and values packed once a head, then blocks of query rows.

A block of rows multiplies with the keys, turns scores into weights row by row, and multiplies these
with the values. u8 results equal ``quant.attention.attention`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels import attention_rows
from mpq_compile.kernels.attention_block import Arguments, RowBlock, head_start
from mpq_compile.kernels.attention_packing import HeadPacking
from mpq_compile.kernels.attention_plan import (
    AttentionPlan,
    Scratch,
    allocate,
    plan_attention,
    scratch_of,
    uses_tiles,
)
from mpq_compile.kernels.attention_tiles import TileRowBlock
from mpq_compile.kernels.attention_workload import AttentionWorkload, Layout
from mpq_compile.kernels.emit import (
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    bound_scalar,
    llvm_functions,
    task_loop,
)
from mpq_compile.kernels.packing import SCALAR_WORDS
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.tile_instructions import TileIntrinsics, TileUnit

# Makes the row block of a task.
BlockKind = Callable[..., RowBlock]


def generate(
    workload: AttentionWorkload,
    tier: Tier,
    threads: int,
    unit: type[TileUnit] = TileIntrinsics,
) -> PrimFunc:
    """Return the PrimFunc ``main(Q, K, V, E, [M], O)`` of attention, all buffers flat.

    E is ``packing.pack_attention``'s record, M the float32 mask. Where it ``uses_tiles``, the
    process needs permission for them: ``tiles.amx_permission``.
    """
    if attention_rows.fits(workload):
        return attention_rows.generate(workload, tier, threads)
    plan = plan_attention(workload, tier, threads)
    kind: BlockKind = RowBlock
    if uses_tiles(workload, tier):
        kind = partial(TileRowBlock, unit=unit(compute=workload.compute))
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        arguments = _declare(plan)
        with llvm_functions(plan.step.llvm_ir):
            _emit(plan, arguments, kind)
    return builder.get()


def _declare(plan: AttentionPlan) -> Arguments:
    workload = plan.workload
    dtype = "uint8" if plan.integer else plan.step.input_dtype

    def argument(name: str, layout: Layout, kind: str) -> Any:
        return T.arg(name, T.buffer((layout.size,), kind))

    return Arguments(
        q=argument("Q", workload.q, dtype),
        k=argument("K", workload.k, dtype),
        v=argument("V", workload.v, dtype),
        record=T.arg("E", T.buffer((SCALAR_WORDS,), "int32")),
        mask=argument("M", workload.mask, "float32") if workload.mask else None,
        output=argument("O", workload.output, FORMAT_DTYPE[workload.out]),
    )


def _emit(plan: AttentionPlan, arguments: Arguments, kind: BlockKind) -> None:
    """Share the row blocks of all heads; a task packs a head when it comes to it."""
    buffers = allocate(plan)
    share = -(-plan.units // plan.tasks)
    with task_loop(plan.tasks) as task:
        scratch = scratch_of(buffers, task)
        block = kind(plan=plan, arguments=arguments, scratch=scratch)
        first = T.bind(task * share)
        with block.task(), T.serial(share) as index:
            unit = T.bind(first + index)
            with T.If(unit < plan.units), T.Then():
                head = T.bind(T.floordiv(unit, plan.row_blocks))
                line = T.bind(T.floormod(unit, plan.row_blocks))
                with T.If(T.Or(index == 0, line == 0)), T.Then():
                    _pack(plan, arguments, scratch, head)
                block.emit(head, line)


def _pack(plan: AttentionPlan, arguments: Arguments, scratch: Scratch, head: Any) -> None:
    packing = HeadPacking(
        plan=plan,
        scratch=scratch,
        k=arguments.k,
        v=arguments.v,
        zero_point=bound_scalar(arguments.record, "zp_in"),
    )
    starts = (head_start(plan, place, head) for place in (plan.workload.k, plan.workload.v))
    packing.emit(*starts)

"""The default CPU schedule for functions that are not our own kernels.

What Relax legalizes (softmax, normalisation, resampling, batched products, …) arrives as scalar,
serial loops. Here elementwise stages are inlined; each loop nest that is left is vectorised along
an axis on which memory is contiguous, and shared among the threads where it is large. A nest that
cannot be scheduled stays as it is, and ``plain_loops.unscheduled`` reports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import IRModule, ir, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.tirx import PrimFunc

from mpq_compile.kernels.access import COSTLY_WEIGHT, has_branches, weight_of
from mpq_compile.kernels.emit import KERNEL_ATTRS, SCHEDULED
from mpq_compile.kernels.nest_schedule import schedule_block
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.vector_math import with_vector_math

FAILURE = "mpq.schedule_failure"


def is_scheduled(func: PrimFunc) -> bool:
    """Tell whether a function is a finished kernel, which no pass may change."""
    return bool(func.attrs) and bool(func.attrs.get(SCHEDULED, False))


def default_schedule(mod: IRModule, tier: Tier, threads: int) -> IRModule:
    """Return ``mod`` with every PrimFunc scheduled that was not; the others are left untouched.

    A function in which some loop nest could not be scheduled carries the reason in the attribute
    ``mpq.schedule_failure``.
    """
    result = mod.clone()
    for name, func in mod.functions.items():
        if isinstance(func, PrimFunc) and not is_scheduled(func):
            result.update_func(name, schedule_function(func, tier, threads))
    return result


def schedule_function(func: PrimFunc, tier: Tier, threads: int) -> PrimFunc:
    """Return ``func`` inlined, vectorised and shared among ``threads``, as far as that goes."""
    failures: list[str] = []
    try:
        schedule = Schedule(_narrowed(func), error_render_level="fast")
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    except Exception as error:  # whatever a pass of TVM raises: the function stays as it is
        return _finished(func, [_reason("root", error)])
    for block in _inlined(schedule, blocks):
        attempt = schedule.copy()
        try:
            schedule_block(attempt, block, tier, threads)
            schedule = attempt
        except Exception as error:  # this nest stays scalar; the audit names it
            failures.append(_reason(schedule.get(block).name_hint, error))
    return _finished(with_vector_math(schedule.mod["main"]), failures)


def _narrowed(func: PrimFunc) -> IRModule:
    """Return a module of ``func`` with 32-bit indices, where it holds no 64-bit data.

    TVM narrows indices itself, but only after it has tied a loop to the wish to peel its last
    iteration, which it then no longer finds.
    """
    module = IRModule({"main": func})
    return module if _holds_int64(func) else tirx.transform.ForceNarrowIndexToInt32()(module)


def _holds_int64(func: PrimFunc) -> bool:
    """Tell whether a function reads or writes 64-bit integers."""
    dtypes: set[str] = set()
    tvm_ffi.structural_walk(
        func.body,
        [
            (ir.TensorLoad, lambda node: dtypes.add(str(node.source.dtype))),
            (tirx.BufferStore, lambda node: dtypes.add(str(node.buffer.dtype))),
        ],
    )
    return "int64" in dtypes


def _finished(func: PrimFunc, failures: Sequence[str]) -> PrimFunc:
    for key, value in KERNEL_ATTRS.items():
        func = func.with_attr(key, value)
    return func.with_attr(FAILURE, "; ".join(failures)) if failures else func


def _reason(name: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    told = [line for line in lines if "Error" in line] or lines
    return f"{name}: {type(error).__name__}: {told[0][:200]}"


def _inlined(schedule: Schedule, blocks: Sequence[Any]) -> list[Any]:
    """Inline elementwise blocks into their consumers or producers; return those that are left."""
    remaining = list(blocks)
    progress = True
    while progress:
        progress = False
        for block in list(remaining):
            if _inline(schedule, block):
                remaining.remove(block)
                progress = True
    return remaining


def _inline(schedule: Schedule, block: Any) -> bool:
    """Inline one block if it is elementwise and that does not repeat costly work."""
    body = schedule.get(block)
    if any(variable.iter_type != 0 for variable in body.iter_vars):
        return False
    consumers = schedule.get_consumers(block)
    reducing = any(
        variable.iter_type == 2 for one in consumers for variable in schedule.get(one).iter_vars
    )
    repeats = weight_of(body.body) >= COSTLY_WEIGHT and (len(consumers) > 1 or reducing)
    if repeats or (reducing and has_branches(body.body)):
        return False
    for inline in (schedule.compute_inline, schedule.reverse_compute_inline):
        try:
            inline(block)
        except ScheduleError:
            continue
        return True
    return False

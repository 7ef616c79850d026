"""Kernels as phases: subroutines over pointers that every task of a network calls.

A kernel allocates scratch and runs parallel loops and serial rests. Each such piece becomes a
function ``phase(pointers…, task)`` that does the share of one task; scratch becomes a pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm_ffi
from tvm import IRModule, ir, s_tir, tirx
from tvm.ir.transform import Sequential
from tvm.target import Target

from mpq_compile.kernels.access import call_name
from mpq_compile.lower.program import NotAProgram

# What a loop allocates below this many bytes lies in registers or on the stack.
_SMALL = 1024
_IMPORT = "pragma_import_llvm"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A PrimFunc cut into phases.

    Args:
        phases: PrimFuncs over a pointer for each argument and each scratch, then the task. They
            return an error code.
        scratch: Bytes of each scratch buffer.
    """

    phases: Sequence[tirx.PrimFunc]
    scratch: Sequence[int]


def cut(func: tirx.PrimFunc, target: Target, tasks: int) -> Kernel:
    """Return the phases of ``func`` for ``tasks`` tasks.

    Raises:
        NotAProgram: It allocates memory within a loop, or binds what its own work has written.
    """
    if any(not _starts_at_zero(buffer) for buffer in func.params):
        raise NotAProgram("a function takes a buffer with an offset")
    if _calls_by_name(func.body):
        raise NotAProgram("a function calls another by its name")
    func = _without_blocks(func)
    imports, body = _unwrapped(func.body)
    statements = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    scratch, before, groups = _parts(statements)
    buffers = [*func.params, *scratch]
    phases = []
    for group in groups:
        task = tirx.Var("task", "int32")
        body = [*before, _share(group, task, tasks)]
        phases.append(_subroutine(buffers, task, body, imports, target))
    return Kernel(phases=phases, scratch=[_bytes(buffer) for buffer in scratch])


def _parts(statements: Sequence[Any]) -> tuple[list[Any], list[Any], list[list[Any]]]:
    """Return scratch buffers, what every phase begins with, and the statements of each phase."""
    if not any(_is_parallel(statement) for statement in statements):
        # One phase: all that is small stays where it stands.
        large = [s for s in statements if isinstance(s, tirx.AllocBuffer) and not _is_small(s)]
        work = [s for s in statements if not any(s.same_as(other) for other in large)]
        _check_allocations(work)
        return [s.buffer for s in large], [], [work]
    scratch = [s.buffer for s in statements if isinstance(s, tirx.AllocBuffer)]
    before = [s for s in statements if isinstance(s, (tirx.Bind, tirx.DeclBuffer))]
    work = [s for s in statements if not _prepares(s)]
    _check_allocations(work)
    _check_bindings(statements)
    return scratch, before, _groups(work)


def _without_blocks(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function as plain loops."""
    if not _holds(func.body, s_tir.SBlock):
        return func
    # Vectors that are written out confuse the pass that shrinks what scheduled functions
    # allocate to the part that they use.
    shrink = [] if _holds(func.body, tirx.Ramp) else [s_tir.transform.CompactBufferAllocation()]
    passes = [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        *shrink,
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.LowerOpaqueBlock(),
    ]
    return Sequential(passes)(IRModule({"main": func}))["main"]


def _holds(body: Any, kind: type) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(body, (kind, found.append))
    return bool(found)


def _check_allocations(work: Sequence[Any]) -> None:
    found: list[Any] = []
    for statement in work:
        tvm_ffi.structural_walk(statement, (tirx.AllocBuffer, found.append))
    for allocation in found:
        if not _is_small(allocation):
            raise NotAProgram(f"{allocation.buffer.name} is allocated within a loop")


def _check_bindings(statements: Sequence[Any]) -> None:
    """Refuse a variable that is read from what work before it has written.

    All variables move to the front.
    """
    written: list[Any] = []
    for statement in statements:
        if not _prepares(statement):
            stores = (tirx.BufferStore, lambda store: written.append(store.buffer))
            tvm_ffi.structural_walk(statement, stores)
        elif isinstance(statement, tirx.Bind):
            loads: list[Any] = []
            tvm_ffi.structural_walk(statement.value, (ir.TensorLoad, loads.append))
            if any(load.source.same_as(buffer) for load in loads for buffer in written):
                raise NotAProgram(f"{statement.var.name} is read after work")


def _unwrapped(body: Any) -> tuple[list[Any], Any]:
    """Return the imported LLVM functions around a body, and what they surround."""
    imports = []
    while isinstance(body, tirx.AttrStmt) and body.attr_key == _IMPORT:
        imports.append(body)
        body = body.body
    return imports, body


def _calls_by_name(body: Any) -> bool:
    """Tell whether TVM's registry is asked for a function: sorting and the like."""
    names: set[str] = set()
    tvm_ffi.structural_walk(body, (ir.Call, lambda call: names.add(call_name(call))))
    return bool(names & {"tvm_call_packed", "tvm_call_cpacked"})


def _starts_at_zero(buffer: Any) -> bool:
    offset = buffer.ty.elem_offset
    return offset is None or (isinstance(offset, tirx.IntImm) and int(offset) == 0)


def _prepares(statement: Any) -> bool:
    return isinstance(statement, (tirx.Bind, tirx.AllocBuffer, tirx.DeclBuffer))


def _bytes(buffer: Any) -> int:
    cells = math.prod(int(size) for size in buffer.ty.shape)
    return cells * np.dtype(str(buffer.ty.dtype)).itemsize


def _is_small(allocation: Any) -> bool:
    return _bytes(allocation.buffer) < _SMALL


def _is_parallel(statement: Any) -> bool:
    return isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL


def _groups(work: Sequence[Any]) -> list[list[Any]]:
    """Put serial statements that follow each other together; a parallel loop stands alone."""
    groups: list[list[Any]] = []
    for statement in work:
        if groups and not _is_parallel(statement) and not _is_parallel(groups[-1][0]):
            groups[-1].append(statement)
        else:
            groups.append([statement])
    return groups


def _share(group: Sequence[Any], task: Any, tasks: int) -> Any:
    """Return what ``task`` does of a group: its part of a parallel loop, or all if it is first."""
    loop = group[0]
    if not _is_parallel(loop):
        return _when(task < 1, *group)
    extent = int(loop.extent)
    if extent <= tasks:
        return _when(task < extent, _set(loop.loop_var, task), loop.body)
    share = -(-extent // tasks)
    step = tirx.Var("step", "int32")
    index = task * share + step
    body = _when(index < extent, _set(loop.loop_var, index), loop.body)
    return tirx.For(step, 0, share, tirx.ForKind.SERIAL, body)


def _set(variable: Any, value: Any) -> tirx.Bind:
    dtype = str(variable.ty.dtype)
    return tirx.Bind(variable, value if dtype == "int32" else value.astype(dtype))


def _when(condition: Any, *statements: Any) -> Any:
    body = tirx.SeqStmt(list(statements)) if len(statements) > 1 else statements[0]
    return tirx.IfThenElse(condition, body, None)


def _subroutine(
    buffers: Sequence[Any], task: Any, work: Sequence[Any], imports: Sequence[Any], target: Target
) -> tirx.PrimFunc:
    """Return a function over pointers to ``buffers`` that runs ``work`` and returns 0."""
    pointers = [
        tirx.Var(f"{buffer.name}_data", ir.PointerType(ir.PrimType(str(buffer.ty.dtype))))
        for buffer in buffers
    ]
    views = [tirx.DeclBuffer(b, data=p) for b, p in zip(buffers, pointers, strict=True)]
    body = tirx.SeqStmt([*views, *work])
    for statement in reversed(imports):
        body = tirx.AttrStmt(statement.node, statement.attr_key, statement.value, body)
    done = tirx.Return(tirx.const(0, "int32"))
    function = tirx.PrimFunc(
        [*pointers, task], tirx.SeqStmt([body, done]), ret_type=ir.PrimType("int32")
    )
    return function.with_attr("s_tir", True).with_attr("target", target)

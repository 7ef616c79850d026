"""How the blocks of a TensorIR function walk through memory: the facts a schedule is chosen by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import ir, tirx
from tvm.ir import Range
from tvm.s_tir import Schedule
from tvm.sym import Analyzer

# Calls that cost as much as this many additions.
COSTLY = {"exp", "erf", "tanh", "sigmoid", "log", "pow", "sin", "cos"}
COSTLY_WEIGHT = 4


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One loop of a block: its variable, extent and kind, and the strides it walks with.

    ``write`` and ``reads`` are steps in elements of the written and of the read buffers, in the
    order of the loads; None where the step is not the same everywhere. ``guarded`` tells that a
    condition depends on the axis.
    """

    position: int
    extent: int
    reduces: bool
    write: int | None
    reads: tuple[int | None, ...]
    guarded: bool

    @property
    def looks_up(self) -> bool:
        """Tell whether the axis only copies elements from irregular places."""
        return len(self.reads) == 1 and self.reads[0] is None

    @property
    def runs_along(self) -> bool:
        """Tell whether a vector along this axis needs neither gathers nor conditions."""
        return (
            not self.guarded
            and all(step in (0, 1) for step in self.reads)
            and any(step == 1 for step in (*self.reads, self.write))
        )


@dataclass(frozen=True, kw_only=True)
class Nest:
    """One block with the loops around it."""

    axes: tuple[Axis, ...]
    weight: int

    @property
    def spatial(self) -> tuple[Axis, ...]:
        """Return the axes that index the result."""
        return tuple(axis for axis in self.axes if not axis.reduces)

    @property
    def reduced(self) -> tuple[Axis, ...]:
        """Return the axes that are summed over."""
        return tuple(axis for axis in self.axes if axis.reduces)

    @property
    def work(self) -> int:
        """Return the number of iterations, weighted by the cost of one."""
        count = self.weight
        for axis in self.axes:
            count *= axis.extent
        return count


def nest_of(schedule: Schedule, block_rv: Any) -> Nest | None:
    """Analyse a block; None where a loop is not one axis of the block with a constant extent."""
    block, loops = schedule.get(block_rv), schedule.get_loops(block_rv)
    known = [constant(schedule.get(loop).extent) for loop in loops]
    extents = [extent for extent in known if extent is not None]
    variables = [variable.var for variable in block.iter_vars]
    kinds = [variable.iter_type for variable in block.iter_vars]
    if not len(loops) == len(variables) == len(extents) or set(kinds) - {0, 2}:
        return None
    loads, stores = list(_accesses(block.body))
    guards = _condition_variables(block.body)
    axes = []
    for index, variable in enumerate(variables):
        analyzer = _ranges(variables, extents, index)
        axes.append(
            Axis(
                position=index,
                extent=extents[index],
                reduces=kinds[index] == 2,
                write=_step(stores[-1], variable, analyzer),
                reads=tuple(_step(load, variable, analyzer) for load in loads),
                guarded=any(variable.same_as(one) for one in guards),
            )
        )
    return Nest(axes=tuple(axes), weight=weight_of(block.body))


def _ranges(variables: list[Any], extents: list[int], stepping: int) -> Analyzer:
    """Return what is known of the variables while one of them takes a step."""
    analyzer = Analyzer()
    for index, (variable, extent) in enumerate(zip(variables, extents, strict=True)):
        # Before its last step: an axis of one element never steps, so any range will do.
        analyzer.bind(variable, Range(0, max(1, extent - (index == stepping))))
    return analyzer


def collapsible(axes: tuple[Axis, ...], writes: bool = True) -> int:
    """Return how many trailing axes can be walked as one, in every buffer.

    They can where a buffer does not move at all along them, or where each step is the next
    axis's step times its extent. With ``writes=False`` the written buffer does not count.
    """
    count = 1
    for axis, inner in zip(axes[-2::-1], axes[:0:-1], strict=True):
        outer_steps, inner_steps = axis.reads, inner.reads
        if writes:
            outer_steps, inner_steps = (*outer_steps, axis.write), (*inner_steps, inner.write)
        joined = all(
            far is not None and near is not None and far == near * inner.extent
            for far, near in zip(outer_steps, inner_steps, strict=True)
        )
        if axis.guarded or (not joined and inner.extent != 1):
            break
        count += 1
    return count


def constant(extent: Any) -> int | None:
    """Return the value of an integer literal, else None."""
    return int(extent.value) if isinstance(extent, tirx.IntImm) else None


def call_name(call: ir.Call) -> str:
    """Return the name of the operator that is called, without its namespace."""
    return str(getattr(call.op, "name", "")).rpartition(".")[2]


def weight_of(body: Any) -> int:
    """Return the cost of one iteration of a block in additions, roughly."""
    weight = 1

    def visit(call: ir.Call) -> None:
        nonlocal weight
        if call_name(call) in COSTLY:
            weight += COSTLY_WEIGHT

    tvm_ffi.structural_walk(body, (ir.Call, visit))
    return weight


def has_branches(body: Any) -> bool:
    """Tell whether a block computes conditions, as padding does."""
    return bool(_conditions(body))


def _conditions(body: Any) -> list[Any]:
    found: list[Any] = []

    def visit(call: ir.Call) -> None:
        if call_name(call) == "if_then_else":
            found.append(call.args[0])

    tvm_ffi.structural_walk(body, (ir.Call, visit))
    return found


def _condition_variables(body: Any) -> list[Any]:
    variables: list[Any] = []
    for condition in _conditions(body):
        tvm_ffi.structural_walk(condition, (tirx.Var, variables.append))
    return variables


def _accesses(body: Any) -> Iterator[list[tuple[Any, list[Any]]]]:
    """Yield the loads, then the stores of a block, as (buffer, indices)."""
    loads: list[tuple[Any, list[Any]]] = []
    stores: list[tuple[Any, list[Any]]] = []
    tvm_ffi.structural_walk(
        body,
        [
            (ir.TensorLoad, lambda node: loads.append((node.source, list(node.indices)))),
            (tirx.BufferStore, lambda node: stores.append((node.buffer, list(node.indices)))),
        ],
    )
    yield loads
    yield stores


def _step(access: tuple[Any, list[Any]], variable: Any, analyzer: Analyzer) -> int | None:
    """Return by how many elements an access moves when ``variable`` grows by one."""
    buffer, indices = access
    offset: Any = 0
    for size, index in zip(buffer.shape, indices, strict=True):
        offset = offset * size + index
    moved = tvm_ffi.structural_map(
        offset, (tirx.Var, lambda v: v + 1 if v.same_as(variable) else v)
    )
    return constant(analyzer.simplify(moved - offset))

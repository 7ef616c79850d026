"""Schedules of one loop nest: which axis becomes a vector, which is shared among the threads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.s_tir import Schedule

from mpq_compile.kernels.access import Axis, Nest, collapsible, nest_of
from mpq_compile.kernels.emit import PARALLEL_ELEMENTS
from mpq_compile.kernels.tier import Tier

# Asks TVM to peel the last, incomplete vector off a loop, so that the others need no condition.
_PARTITION = "pragma_loop_partition_hint"

# Rows of a matrix product that share one load of the other operand, best first.
_ROW_BLOCKS = (6, 8, 5, 7, 4, 3, 2)

# A vector loop shorter than this is not worth having.
_FEW = 4


def schedule_block(schedule: Schedule, block: Any, tier: Tier, threads: int) -> None:
    """Vectorise and parallelise one loop nest in place; may raise and leave it half done."""
    nest = nest_of(schedule, block)
    if nest is None:
        raise ValueError("loops are not the axes of the block")
    if not nest.axes:
        return
    if not nest.reduced:
        _spatial(schedule, block, nest, tier.lanes, threads)
    elif _lane_axes(nest):
        _reduce_beside(schedule, block, nest, tier.lanes, threads)
    elif _summed_axes(nest, tier.lanes):
        _reduce_along(schedule, block, nest, tier.lanes, threads)
    else:
        _spatial_only(schedule, block, nest, threads)


def _spatial(schedule: Schedule, block: Any, nest: Nest, lanes: int, threads: int) -> None:
    """Elementwise: the axes that are contiguous everywhere become the vector loop.

    A plain loop that looks elements up, or that holds a condition, is better left to LLVM.
    """
    loops = schedule.get_loops(block)
    joined = collapsible(nest.axes)
    outer, inner = loops[:-joined], _fuse(schedule, loops[-joined:])
    plain = nest.axes[-1].guarded or nest.axes[-1].looks_up
    vectors = inner if plain else _vectorize(schedule, inner, lanes)
    _share(schedule, outer, vectors, nest.work, threads)


def _extent(schedule: Schedule, loop: Any) -> int:
    return int(schedule.get(loop).extent)


def _fuse(schedule: Schedule, loops: Sequence[Any]) -> Any:
    return loops[0] if len(loops) == 1 else schedule.fuse(*loops)


def _vectorize(schedule: Schedule, loop: Any, lanes: int) -> Any | None:
    """Vectorise a loop; return the serial loop over its vectors, or None where there is none."""
    extent = _extent(schedule, loop)
    if extent <= lanes:
        if extent >= _FEW:
            schedule.vectorize(loop)
            return None
        return loop
    vectors, inner = _split_vectors(schedule, loop, lanes)
    schedule.vectorize(inner)
    return vectors


def _share(
    schedule: Schedule, outer: Sequence[Any], vectors: Any | None, work: int, threads: int
) -> None:
    """Share the outer loops among the threads, or the loop over vectors where they are few."""
    if work < PARALLEL_ELEMENTS or threads == 1:
        return
    rows = 1
    for loop in outer:
        rows *= _extent(schedule, loop)
    if rows >= threads:
        schedule.parallel(_fuse(schedule, outer))
    elif vectors is not None:
        schedule.parallel(vectors)


def _lane_axes(nest: Nest) -> tuple[Axis, ...]:
    """Return the trailing spatial axes along which all memory is contiguous or unchanged."""
    axes = tuple(axis for axis in nest.spatial if axis.extent > 1)
    if not axes or axes[-1].write != 1 or not axes[-1].runs_along:
        return ()
    lanes = axes[-collapsible(axes) :]
    return lanes if math.prod(axis.extent for axis in lanes) >= _FEW else ()


def _summed_axes(nest: Nest, lanes: int) -> tuple[Axis, ...]:
    """Return the trailing reduced axes that are contiguous in what is read, if long enough."""
    axes = tuple(axis for axis in nest.reduced if axis.extent > 1)
    # The written buffer is read too, and stands still along every reduced axis.
    if not axes or not axes[-1].runs_along:
        return ()
    summed = axes[-collapsible(axes) :]
    return summed if math.prod(axis.extent for axis in summed) >= 2 * lanes else ()


def _reduce_beside(schedule: Schedule, block: Any, nest: Nest, lanes: int, threads: int) -> None:
    """Reduce with a vector of results: a sum over rows, a matrix product."""
    loops = schedule.get_loops(block)
    lane_axes = _lane_axes(nest)
    outer = [axis for axis in nest.spatial if axis not in lane_axes]
    row_axis = _row_axis(nest, outer)
    reduced = [loops[axis.position] for axis in nest.reduced]
    shared = [loops[axis.position] for axis in outer if axis is not row_axis]
    lane_loops = [loops[axis.position] for axis in lane_axes]
    schedule.reorder(*lane_loops, *reduced)
    lane = _fuse(schedule, lane_loops)
    serial: list[Any] = []
    unrolled: list[Any] = []
    if row_axis is not None:
        rows, row = _split_rows(schedule, loops[row_axis.position], row_axis.extent)
        unrolled.append(row)
        # An incomplete last block is peeled off, which a loop shared among threads does not allow.
        (serial if row_axis.extent % _extent(schedule, row) else shared).append(rows)
    vectors = None
    if _extent(schedule, lane) > lanes:
        vectors, lane = _split_vectors(schedule, lane, lanes)
        serial.append(vectors)
    schedule.reorder(*shared, *serial, *reduced, *unrolled, lane)
    schedule.vectorize(lane)
    for loop in unrolled:
        schedule.unroll(loop)
    _share(schedule, shared, vectors if len(serial) == 1 else None, nest.work, threads)
    _separate_start(schedule, block, reduced[0], 1 + len(unrolled))


def _split_vectors(schedule: Schedule, loop: Any, lanes: int) -> tuple[Any, Any]:
    """Split a loop into vectors and lanes; have an incomplete last vector peeled off.

    TVM peels only loops with 32-bit indices; others are split by a width that divides them.
    """
    extent = _extent(schedule, loop)
    if extent % lanes and str(schedule.get(loop).loop_var.ty.dtype) == "int64":
        lanes = max(width for width in (1, *range(_FEW, 2 * lanes)) if extent % width == 0)
    vectors, lane = schedule.split(loop, [None, lanes])
    if extent % lanes:
        schedule.annotate(vectors, _PARTITION, 1)
    return vectors, lane


def _split_rows(schedule: Schedule, loop: Any, extent: int) -> tuple[Any, Any]:
    """Split the rows of a product into blocks, of one size if there is one that divides them."""
    fitting = [rows for rows in _ROW_BLOCKS if extent % rows == 0]
    if fitting:
        rows, row = schedule.split(loop, [None, fitting[0]])
        return rows, row
    return _split_vectors(schedule, loop, _ROW_BLOCKS[0])


def _separate_start(schedule: Schedule, block: Any, reduced: Any, depth: int) -> None:
    """Move the initial value out of the reduction; treat its inner loops like those.

    Last of all: a block without its initial value is no reduction to TVM, which then refuses
    every further step.
    """
    initial = schedule.decompose_reduction(block, reduced)
    loops = schedule.get_loops(initial)
    lane = loops[-1]
    if _extent(schedule, lane) > 1:
        schedule.vectorize(lane)
    if depth == 2:
        schedule.unroll(loops[-2])


def _row_axis(nest: Nest, outer: Sequence[Axis]) -> Axis | None:
    """Return the axis of a matrix product whose rows share the loads of the other operand."""
    for axis in reversed(outer):
        shares = any(step == 0 for step in axis.reads) and len(set(axis.reads)) > 1
        if shares and axis.write and axis.extent >= min(_ROW_BLOCKS):
            return axis
    return None


def _reduce_along(schedule: Schedule, block: Any, nest: Nest, lanes: int, threads: int) -> None:
    """Reduce along contiguous memory: one partial result for each lane, joined at the end."""
    loops = schedule.get_loops(block)
    depth = len(nest.spatial)
    summed = _fuse(schedule, [loops[axis.position] for axis in _summed_axes(nest, lanes)])
    extent = _extent(schedule, summed)
    _, lane = _split_vectors(schedule, summed, lanes)
    width = _extent(schedule, lane)
    partial = schedule.rfactor(lane, depth)
    spatial = schedule.get_loops(block)[:depth]
    if spatial and extent % width == 0:
        schedule.compute_at(partial, spatial[-1])
        lane, *reduced = schedule.get_loops(partial)[depth:]
        schedule.reorder(*reduced, lane)
    else:
        # A nest of its own: ``compute_at`` would drop the condition of an incomplete vector.
        *reduced, lane = schedule.get_loops(partial)[depth:]
        _share(schedule, schedule.get_loops(partial)[:depth], None, nest.work, threads)
    schedule.vectorize(lane)
    _share(schedule, spatial, None, nest.work, threads)
    _separate_start(schedule, partial, reduced[0], 1)


def _spatial_only(schedule: Schedule, block: Any, nest: Nest, threads: int) -> None:
    """Share the results among the threads; nothing to vectorise."""
    loops = schedule.get_loops(block)
    outer = [loops[axis.position] for axis in nest.spatial]
    reduced = [loops[axis.position] for axis in nest.reduced]
    schedule.reorder(*outer, *reduced)
    # The last loop stays apart: indices computed back from a joined one cost more than the rest.
    _share(schedule, outer[:-1], outer[-1] if outer else None, nest.work, threads)

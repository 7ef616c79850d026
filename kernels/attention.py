"""Scaled dot product attention: keys and values packed once a head, then blocks of query rows.

A block of rows computes its scores into scratch, turns them into weights row by row, and
multiplies these with the values. u8 results equal ``quant.attention.attention`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func
from tvm.tirx import PrimFunc

from mpq_compile.kernels import attention_rows
from mpq_compile.kernels.attention_packing import HeadPacking
from mpq_compile.kernels.attention_plan import (
    Area,
    AttentionPlan,
    Scratch,
    allocate,
    plan_attention,
    scratch_of,
)
from mpq_compile.kernels.attention_workload import AttentionWorkload, Layout
from mpq_compile.kernels.emit import (
    FORMAT_DTYPE,
    KERNEL_ATTRS,
    bound_scalar,
    copy_short,
    copy_span,
    fenced_product,
    fill_short,
    llvm_functions,
    load,
    narrow,
    splat,
    store,
    task_loop,
    vector,
)
from mpq_compile.kernels.packing import SCALAR_WORDS
from mpq_compile.kernels.softmax import WEIGHTS, reduce_lanes
from mpq_compile.kernels.tier import Tier
from mpq_compile.quant.exponential import LOG2_E

_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """Buffers of the kernel; ``mask`` is None where there is none."""

    q: Any
    k: Any
    v: Any
    record: Any
    mask: Any
    output: Any


def generate(workload: AttentionWorkload, tier: Tier, threads: int) -> PrimFunc:
    """Return the PrimFunc ``main(Q, K, V, E, [M], O)`` of attention, all buffers flat.

    E is ``packing.pack_attention``'s record, M the float32 mask.
    """
    if attention_rows.fits(workload):
        return attention_rows.generate(workload, tier, threads)
    plan = plan_attention(workload, tier, threads)
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr(KERNEL_ATTRS)
        arguments = _declare(plan)
        with llvm_functions(plan.step.llvm_ir):
            _emit(plan, arguments)
    return builder.get()


def _declare(plan: AttentionPlan) -> _Arguments:
    workload = plan.workload
    dtype = "uint8" if plan.integer else plan.step.input_dtype

    def argument(name: str, layout: Layout, kind: str) -> Any:
        return T.arg(name, T.buffer((layout.size,), kind))

    return _Arguments(
        q=argument("Q", workload.q, dtype),
        k=argument("K", workload.k, dtype),
        v=argument("V", workload.v, dtype),
        record=T.arg("E", T.buffer((SCALAR_WORDS,), "int32")),
        mask=argument("M", workload.mask, "float32") if workload.mask else None,
        output=argument("O", workload.output, FORMAT_DTYPE[workload.out]),
    )


def _emit(plan: AttentionPlan, arguments: _Arguments) -> None:
    """Share the row blocks of all heads; a task packs a head when it comes to it."""
    buffers = allocate(plan)
    share = -(-plan.units // plan.tasks)
    with task_loop(plan.tasks) as task:
        scratch = scratch_of(buffers, task)
        block = _RowBlock(plan=plan, arguments=arguments, scratch=scratch)
        first = T.bind(task * share)
        with T.serial(share) as index:
            unit = T.bind(first + index)
            with T.If(unit < plan.units), T.Then():
                head = T.bind(T.floordiv(unit, plan.row_blocks))
                line = T.bind(T.floormod(unit, plan.row_blocks))
                with T.If(T.Or(index == 0, line == 0)), T.Then():
                    _pack(plan, arguments, scratch, head)
                block.emit(head, line)


def _pack(plan: AttentionPlan, arguments: _Arguments, scratch: Scratch, head: Any) -> None:
    packing = HeadPacking(
        plan=plan,
        scratch=scratch,
        k=arguments.k,
        v=arguments.v,
        zero_point=bound_scalar(arguments.record, "zp_in"),
    )
    starts = (_head_start(plan, place, head) for place in (plan.workload.k, plan.workload.v))
    packing.emit(*starts)


def _head_start(plan: AttentionPlan, layout: Layout, head: Any) -> Any:
    """Return the first element of a head (batch · heads + head) of an operand."""
    batch = T.floordiv(head, plan.workload.heads) * layout.strides[0]
    return T.bind(layout.offset + batch + T.floormod(head, plan.workload.heads) * layout.strides[1])


@dataclass(frozen=True, kw_only=True)
class _RowBlock:
    """Emits ``plan.rows`` query rows of one head."""

    plan: AttentionPlan
    arguments: _Arguments
    scratch: Scratch

    def emit(self, head: Any, line: Any) -> None:
        """Emit row block ``line`` of ``head``."""
        plan, workload = self.plan, self.plan.workload
        row = T.bind(T.min(line * plan.rows, workload.queries - plan.rows))
        query = Area(
            buffer=self.arguments.q,
            base=T.bind(_head_start(plan, workload.q, head) + row * workload.q.strides[2]),
        )
        strides = workload.q.strides[2]
        if self.scratch.queries is not None:
            self._stage_queries(self.scratch.queries, query)
            query, strides = self.scratch.queries, plan.padded_depth
        keys: Any = workload.keys
        if workload.causal:
            keys = T.bind(T.min(row + plan.rows, workload.keys))
        self._scores(query, strides, row, keys, self._mask_rows(head, row))
        self._softmax(keys)
        out = _head_start(plan, workload.output, head) + row * workload.output.strides[2]
        self._output(keys, T.bind(out))

    # Operands

    def _stage_queries(self, area: Area, query: Area) -> None:
        """Copy rows of q as a step reads them, to whole steps, zeros behind them."""
        plan, depth = self.plan, self.plan.workload.depth
        lanes = 4 * plan.lanes
        with T.serial(plan.rows) as r:
            place = T.bind(area.base + r * plan.padded_depth)
            source = query.base + r * plan.workload.q.strides[2]
            copy_span(area.buffer, place, query.buffer, source, depth, lanes, plan.step.staged)
            zero = T.cast(0, area.buffer.dtype)
            fill_short(area.buffer, place + depth, zero, plan.padded_depth - depth)

    def _mask_rows(self, head: Any, row: Any) -> Callable[[int], Any] | None:
        """Return a function of the row in the block that gives where its mask starts."""
        layout = self.plan.workload.mask
        if layout is None:
            return None
        start = T.bind(_head_start(self.plan, layout, head) + row * layout.strides[2])
        area = self.scratch.mask
        if area is None:
            return lambda r: start + r * layout.strides[2]
        keys, size = self.plan.workload.keys, self.plan.padded_keys
        with T.serial(self.plan.rows) as r:
            source = start + r * layout.strides[2]
            place = area.base + r * size
            copy_span(area.buffer, place, self.arguments.mask, source, keys, self.plan.lanes)
        return lambda r: area.base + r * size

    # Scores

    def _scores(self, query: Area, stride: int, row: Any, keys: Any, mask: Any) -> None:
        """Store the scores of all rows, and the highest of each row and lane."""
        plan, scratch = self.plan, self.scratch
        rows, lanes, count = plan.rows, plan.lanes, plan.vectors(plan.key_vectors)
        tops = [T.alloc_buffer((lanes,), "float32") for _ in range(rows)]
        for top in tops:
            store(top, 0, lanes, splat(T.float32(_LOWEST), lanes))
        scale = bound_scalar(self.arguments.record, "scale")
        places = [query.base + r * stride for r in range(rows)]
        pixels = Area(buffer=query.buffer, base=places)
        with T.serial(_groups(keys, count * lanes)) as group:
            first = T.bind(T.min(group * count, plan.key_vectors - count))
            cells = self._product(
                pixels, scratch.keys, scratch.key_starts, first, count, plan.depth_steps
            )
            for index, cell in enumerate(cells):
                r, place = index // count, T.bind((first + index % count) * lanes)
                v = T.cast(load(cell, 0, lanes), vector("float32", lanes))
                s = fenced_product(v, splat(scale, lanes), lanes)
                if mask is not None:
                    source = (scratch.mask or Area(buffer=self.arguments.mask, base=0)).buffer
                    s = s + load(source, mask(r) + place, lanes)
                s = T.bind(self._visible(s, place, row + r))
                at = scratch.scores.base + r * plan.padded_keys + place
                store(scratch.scores.buffer, at, lanes, s)
                store(tops[r], 0, lanes, T.max(load(tops[r], 0, lanes), s))
        for r, top in enumerate(tops):
            at = scratch.highest.base + r * lanes
            store(scratch.highest.buffer, at, lanes, load(top, 0, lanes))

    def _visible(self, s: Any, place: Any, row: Any) -> Any:
        """Replace scores of keys behind the last one, or behind the row, by −inf."""
        workload, lanes = self.plan.workload, self.plan.lanes
        if not workload.causal and workload.keys % lanes == 0:
            return s
        limit = T.min(row + 1, workload.keys) if workload.causal else T.int32(workload.keys)
        inside = T.ramp(place, 1, lanes) < splat(limit, lanes)
        return T.Select(inside, s, splat(T.float32(float("-inf")), lanes))

    def _product(
        self, pixels: Area, packed: Area, starts: Area, first: Any, count: int, steps: Any
    ) -> list[Any]:
        """Multiply rows with ``count`` panels of a packed operand; return sums [row][panel].

        ``pixels.base`` holds the first element of each row.
        """
        plan, step, lanes = self.plan, self.plan.step, self.plan.lanes
        panel_steps = plan.depth_steps if packed is self.scratch.keys else plan.key_steps
        panels = [
            T.bind(packed.base + (first + index) * (panel_steps * plan.step_size))
            for index in range(count)
        ]
        cells = [T.alloc_buffer((lanes,), step.accumulator) for _ in range(plan.rows * count)]
        for index, cell in enumerate(cells):
            start = splat(T.float32(0), lanes)
            if plan.integer:
                start = load(starts.buffer, starts.base + (first + index % count) * lanes, lanes)
            store(cell, 0, lanes, start)
        with T.serial(steps) as k:
            columns = [
                T.bind(step.weights(packed.buffer, panel + k * plan.step_size)) for panel in panels
            ]
            for r, place in enumerate(pixels.base):
                x = T.bind(step.pixel(pixels.buffer, place + k * step.k_group))
                for index, w in enumerate(columns):
                    cell = cells[r * count + index]
                    store(cell, 0, lanes, step.add(load(cell, 0, lanes), x, w))
        return cells

    # Weights

    def _softmax(self, keys: Any) -> None:
        """Turn the scores of each row into weights; note their sum."""
        plan, scratch, lanes = self.plan, self.scratch, self.plan.lanes
        sums = plan.step.accumulator
        weigh = WEIGHTS[plan.workload.compute]
        out_scale = bound_scalar(self.arguments.record, "residual_scale")
        correction = 128 - bound_scalar(self.arguments.record, "zp_residual")
        with T.serial(plan.rows) as r:
            at = T.bind(r * lanes)
            highest = load(scratch.highest.buffer, scratch.highest.base + at, lanes)
            top = reduce_lanes(highest, T.max, lanes)
            total = T.alloc_buffer((lanes,), sums)
            store(total, 0, lanes, splat(T.cast(0, sums), lanes))
            line = T.bind(r * plan.padded_keys)
            with T.serial(self._written(keys)) as j:
                place = T.bind(line + j * lanes)
                s = load(scratch.scores.buffer, scratch.scores.base + place, lanes)
                z = T.bind(fenced_product(s - top, splat(T.float32(LOG2_E), lanes), lanes))
                stored, summed = weigh(z, lanes)
                weights = plan.step.staged(stored, lanes)
                store(scratch.weights.buffer, scratch.weights.base + place, lanes, weights)
                store(total, 0, lanes, load(total, 0, lanes) + summed)
            whole = reduce_lanes(load(total, 0, lanes), lambda a, b: a + b, lanes)
            if plan.integer:
                area = scratch.corrections
                store(area.buffer, area.base + at, lanes, whole * splat(correction, lanes))
            least = T.max(whole, splat(T.cast(1, sums), lanes))
            factor = splat(out_scale, lanes) / T.cast(least, vector("float32", lanes))
            store(scratch.factors.buffer, scratch.factors.base + at, lanes, factor)

    def _written(self, keys: Any) -> Any:
        """Return the vectors of scores that ``_scores`` wrote for so many keys."""
        count = self.plan.vectors(self.plan.key_vectors)
        groups = _groups(keys, count * self.plan.lanes)
        return T.min(groups * count, self.plan.key_vectors)

    # Output

    def _output(self, keys: Any, out: Any) -> None:
        """Multiply weights with values, scale and store."""
        plan, scratch = self.plan, self.scratch
        starts = plan.value_starts
        count = plan.vectors(len(starts))
        base = scratch.weights.base
        rows = [T.bind(base + r * plan.padded_keys) for r in range(plan.rows)]
        pixels = Area(buffer=scratch.weights.buffer, base=rows)
        steps = _groups(keys, plan.step.k_group)
        for group in range(0, len(starts), count):
            first = min(group, len(starts) - count)
            cells = self._product(pixels, scratch.values, scratch.value_starts, first, count, steps)
            self._finish(cells, starts[first : first + count], out)

    def _finish(self, cells: Sequence[Any], starts: Sequence[int], out: Any) -> None:
        """Scale and store the sums [row][vector] of a group of columns."""
        plan, lanes, record = self.plan, self.plan.lanes, self.arguments.record
        fmt, stride = plan.workload.out, plan.workload.output.strides[2]
        lo, hi, zero_point = (bound_scalar(record, name) for name in ("lo", "hi", "zp_out"))
        for index, cell in enumerate(cells):
            r, column = index // len(starts), starts[index % len(starts)]
            v = load(cell, 0, lanes)
            if plan.integer:
                area = self.scratch.corrections
                v = v + load(area.buffer, area.base + r * lanes, lanes)
                v = T.cast(v, vector("float32", lanes))
            factors = self.scratch.factors
            factor = load(factors.buffer, factors.base + r * lanes, lanes)
            v = T.bind(fenced_product(v, factor, lanes))
            self._store(out + (r * stride + column), narrow(v, fmt, lo, hi, zero_point, lanes))

    def _store(self, place: Any, value: Any) -> None:
        lanes, depth = self.plan.lanes, self.plan.workload.value_depth
        if depth >= lanes:
            store(self.arguments.output, place, lanes, value)
            return
        whole = T.alloc_buffer((lanes,), self.arguments.output.dtype)
        store(whole, 0, lanes, value)
        copy_short(self.arguments.output, place, whole, 0, depth)


def _groups(extent: Any, size: int) -> Any:
    """Return how many groups of ``size`` cover ``extent``."""
    return -(-extent // size) if isinstance(extent, int) else T.floordiv(extent + size - 1, size)

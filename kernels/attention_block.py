"""A block of query rows of one head: scores, weights of softmax, sums of values.

Scores go into scratch, are turned into weights row by row, and these multiply the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.attention_plan import Area, AttentionPlan, Scratch
from mpq_compile.kernels.attention_workload import Layout
from mpq_compile.kernels.emit import (
    bound_scalar,
    copy_short,
    copy_span,
    fenced_product,
    fill_short,
    load,
    narrow,
    permute,
    splat,
    store,
    vector,
)
from mpq_compile.kernels.softmax import WEIGHTS, reduce_lanes
from mpq_compile.quant.exponential import LOG2_E

# Row of the block, first key → scores of a vector of keys.
Score = Callable[[Any, Any], Any]

_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Buffers of the kernel; ``mask`` is None where there is none."""

    q: Any
    k: Any
    v: Any
    record: Any
    mask: Any
    output: Any


def head_start(plan: AttentionPlan, layout: Layout, head: Any) -> Any:
    """Return the first element of a head (batch · heads + head) of an operand."""
    batch = T.floordiv(head, plan.workload.heads) * layout.strides[0]
    return T.bind(layout.offset + batch + T.floormod(head, plan.workload.heads) * layout.strides[1])


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Emits ``plan.rows`` query rows of one head."""

    plan: AttentionPlan
    arguments: Arguments
    scratch: Scratch

    @contextmanager
    def task(self) -> Iterator[None]:
        """Surround the blocks of one task; nothing to prepare here."""
        yield

    def emit(self, head: Any, line: Any) -> None:
        """Emit row block ``line`` of ``head``."""
        plan, workload = self.plan, self.plan.workload
        row = T.bind(T.min(line * plan.rows, workload.queries - plan.rows))
        query = Area(
            buffer=self.arguments.q,
            base=T.bind(head_start(plan, workload.q, head) + row * workload.q.strides[2]),
        )
        strides = workload.q.strides[2]
        if self.scratch.queries is not None:
            self._stage_queries(self.scratch.queries, query)
            query, strides = self.scratch.queries, plan.padded_depth
        keys: Any = workload.keys
        if workload.causal:
            keys = T.bind(T.min(row + plan.rows, workload.keys))
        score = self._scores(query, strides, row, keys, self._mask_rows(head, row))
        self._softmax(keys, score)
        out = head_start(plan, workload.output, head) + row * workload.output.strides[2]
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
        start = T.bind(head_start(self.plan, layout, head) + row * layout.strides[2])
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

    def _scores(self, query: Area, stride: int, row: Any, keys: Any, mask: Any) -> Score:
        """Multiply all rows with the keys and note the highest score of each row and lane.

        Returns a function of the row and the first key that gives a vector of scores.
        """
        plan, scratch = self.plan, self.scratch
        rows, lanes, count = plan.rows, plan.lanes, plan.vectors(plan.key_vectors)
        tops = [self._top() for _ in range(rows)]
        scale = bound_scalar(self.arguments.record, "scale")
        places = [query.base + r * stride for r in range(rows)]
        pixels = Area(buffer=query.buffer, base=places)
        assert scratch.scores is not None
        area = scratch.scores
        with T.serial(groups(keys, count * lanes)) as group:
            first = T.bind(T.min(group * count, plan.key_vectors - count))
            cells = self._product(
                pixels, scratch.keys, scratch.key_starts, first, count, plan.depth_steps
            )
            for index, cell in enumerate(cells):
                r, place = index // count, T.bind((first + index % count) * lanes)
                s = T.bind(self._scored(load(cell, 0, lanes), r, place, row, mask, scale))
                store(area.buffer, area.base + r * plan.padded_keys + place, lanes, s)
                store(tops[r], 0, lanes, T.max(load(tops[r], 0, lanes), s))
        for r, top in enumerate(tops):
            self._note_highest(r, top)
        return lambda r, place: load(area.buffer, area.base + r * plan.padded_keys + place, lanes)

    def _top(self) -> Any:
        """Return a vector for the highest scores of a row."""
        top = T.alloc_buffer((self.plan.lanes,), "float32")
        store(top, 0, self.plan.lanes, splat(T.float32(_LOWEST), self.plan.lanes))
        return top

    def _scored(self, total: Any, r: Any, place: Any, row: Any, mask: Any, scale: Any) -> Any:
        """Return the scores of row ``r`` and the keys from ``place`` on, whose products sum up to
        ``total``."""
        lanes = self.plan.lanes
        v = T.cast(total, vector("float32", lanes))
        s = fenced_product(v, splat(scale, lanes), lanes)
        if mask is not None:
            source = (self.scratch.mask or Area(buffer=self.arguments.mask, base=0)).buffer
            s = s + load(source, mask(r) + place, lanes)
        return self._visible(s, place, row + r)

    def _note_highest(self, r: Any, top: Any) -> None:
        area, lanes = self.scratch.highest, self.plan.lanes
        store(area.buffer, area.base + r * lanes, lanes, load(top, 0, lanes))

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

    def _softmax(self, keys: Any, score: Score) -> None:
        """Turn the scores of each row into weights; note what scales their sums."""
        plan, scratch, lanes = self.plan, self.scratch, self.plan.lanes
        sums = plan.step.accumulator
        with T.serial(plan.rows) as r:
            highest = load(scratch.highest.buffer, scratch.highest.base + r * lanes, lanes)
            top = reduce_lanes(highest, T.max, lanes)
            total = T.alloc_buffer((lanes,), sums)
            store(total, 0, lanes, splat(T.cast(0, sums), lanes))
            out = T.bind(scratch.weights.base + r * plan.weight_row)
            written, joined = self._written(keys), plan.joined_vectors
            with T.serial(T.floordiv(written, joined)) as j:
                self._weigh(r, out, j * joined, joined, score, top, total)
            if plan.key_vectors % joined:
                with T.serial(T.floormod(written, joined)) as j:
                    done = T.floordiv(written, joined) * joined
                    self._weigh(r, out, done + j, 1, score, top, total)
            whole = reduce_lanes(load(total, 0, lanes), lambda a, b: a + b, lanes)
            area = scratch.totals
            store(area.buffer, area.base + r, 1, permute([whole], [0]))
        self._note_factors()

    def _note_factors(self) -> None:
        """Note what is added to the sums of each row, and what scales them, of all rows at once."""
        plan, scratch, lanes = self.plan, self.scratch, self.plan.lanes
        sums = plan.step.accumulator
        out_scale = bound_scalar(self.arguments.record, "residual_scale")
        correction = 128 - bound_scalar(self.arguments.record, "zp_residual")
        with T.serial(groups(plan.rows, lanes)) as group:
            at = T.bind(group * lanes)
            whole = T.bind(load(scratch.totals.buffer, scratch.totals.base + at, lanes))
            if plan.integer:
                area = scratch.corrections
                store(area.buffer, area.base + at, lanes, whole * splat(correction, lanes))
            least = T.max(whole, splat(T.cast(1, sums), lanes))
            factor = splat(out_scale, lanes) / T.cast(least, vector("float32", lanes))
            store(scratch.factors.buffer, scratch.factors.base + at, lanes, factor)

    def _weigh(
        self, r: Any, out: Any, first: Any, count: int, score: Score, top: Any, total: Any
    ) -> None:
        """Turn ``count`` vectors of a row's scores into weights, stored together."""
        plan, scratch, lanes = self.plan, self.scratch, self.plan.lanes
        weigh, vectors = WEIGHTS[plan.workload.compute], []
        self._keep_awake()
        for index in range(count):
            s = score(r, T.bind((first + index) * lanes))
            z = T.bind(fenced_product(s - top, splat(T.float32(LOG2_E), lanes), lanes))
            stored, summed = weigh(z, lanes)
            vectors.append(plan.step.staged(stored, lanes))
            store(total, 0, lanes, load(total, 0, lanes) + summed)
        weights = permute(vectors, range(count * lanes)) if count > 1 else vectors[0]
        store(scratch.weights.buffer, out + first * lanes, count * lanes, weights)

    def _keep_awake(self) -> None:
        """Keep what multiplies from falling asleep meanwhile; vectors do not."""
        return

    def _written(self, keys: Any) -> Any:
        """Return the vectors of scores that ``_scores`` wrote for so many keys."""
        count = self.plan.vectors(self.plan.key_vectors)
        return T.min(groups(keys, count * self.plan.lanes) * count, self.plan.key_vectors)

    # Output

    def _output(self, keys: Any, out: Any) -> None:
        """Multiply weights with values, scale and store."""
        plan, scratch = self.plan, self.scratch
        starts = plan.value_starts
        count = plan.vectors(len(starts))
        base = scratch.weights.base
        rows = [T.bind(base + r * plan.weight_row) for r in range(plan.rows)]
        pixels = Area(buffer=scratch.weights.buffer, base=rows)
        steps = groups(keys, plan.step.k_group)
        for group in range(0, len(starts), count):
            first = min(group, len(starts) - count)
            cells = self._product(pixels, scratch.values, scratch.value_starts, first, count, steps)
            for index, cell in enumerate(cells):
                r, column = index // count, starts[first + index % count]
                place = out + (r * plan.workload.output.strides[2] + column)
                self._finish(load(cell, 0, plan.lanes), r, place)

    def _finish(self, total: Any, r: Any, place: Any) -> None:
        """Scale the sums ``total`` of row ``r`` and store them at ``place``."""
        plan, lanes, record = self.plan, self.plan.lanes, self.arguments.record
        lo, hi, zero_point = (bound_scalar(record, name) for name in ("lo", "hi", "zp_out"))
        if plan.integer:
            area = self.scratch.corrections
            total = total + splat(area.buffer[area.base + r], lanes)
            total = T.cast(total, vector("float32", lanes))
        factors = self.scratch.factors
        factor = splat(factors.buffer[factors.base + r], lanes)
        v = T.bind(fenced_product(total, factor, lanes))
        self._store(place, narrow(v, plan.workload.out, lo, hi, zero_point, lanes))

    def _store(self, place: Any, value: Any) -> None:
        lanes, depth = self.plan.lanes, self.plan.workload.value_depth
        if depth >= lanes:
            store(self.arguments.output, place, lanes, value)
            return
        whole = T.alloc_buffer((lanes,), self.arguments.output.dtype)
        store(whole, 0, lanes, value)
        copy_short(self.arguments.output, place, whole, 0, depth)


def groups(extent: Any, size: int) -> Any:
    """Return how many groups of ``size`` cover ``extent``."""
    return -(-extent // size) if isinstance(extent, int) else T.floordiv(extent + size - 1, size)

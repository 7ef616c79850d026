"""A block of query rows on AMX tiles: 16 rows × 16 keys, or output columns, a product.

Keys and values are packed as for the dot products of vectors, steps of k in whole tiles: what is
beyond the last column of q, or the last key, is zero on one side. Products take a tenth of the
time of softmax; sums go from the tiles to scratch, where a loop over rows finishes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.attention_block import RowBlock, Score, groups
from mpq_compile.kernels.attention_plan import SUM_TILES, Area
from mpq_compile.kernels.emit import bound_scalar, fill_span, load, store
from mpq_compile.kernels.geometry import TILE_STEPS
from mpq_compile.kernels.tile_instructions import TILES, TileUnit

# Of the eight tiles: sums are the first ones, then come the rows of q or of weights, then the
# packed operand.
_ROW_TILE = SUM_TILES
_PACKED_TILES = range(_ROW_TILE + 1, TILES)


@dataclass(frozen=True, kw_only=True)
class TileRowBlock(RowBlock):
    """Emits ``plan.rows`` query rows of one head by tiles."""

    unit: TileUnit

    @contextmanager
    def task(self) -> Iterator[None]:
        plan, scratch = self.plan, self.scratch
        if plan.workload.depth < plan.padded_depth:
            self._clear(scratch.keys, plan.key_vectors * plan.depth_steps * plan.step_size)
        if plan.padded_keys < plan.weight_row:
            self._clear(scratch.weights, plan.rows * plan.weight_row)
        self.unit.begin()
        rows = {tile: plan.rows for tile in range(_ROW_TILE + 1)}
        self.unit.configure(rows | dict.fromkeys(_PACKED_TILES, TILE_STEPS))
        yield
        self.unit.end()
        # TVM lets a buffer take the memory of one that is used no more, and rejects pointers to it
        # where the two are of different dtypes: all of them are used to the end.
        packed = scratch.keys, scratch.values, scratch.key_starts, scratch.value_starts
        for area in (*packed, scratch.weights, scratch.sums, scratch.queries):
            if area is not None:
                store(area.buffer, area.base, 1, T.cast(0, area.buffer.dtype))

    @property
    def _sums(self) -> Area:
        assert self.scratch.sums is not None
        return self.scratch.sums

    def _clear(self, area: Area, size: int) -> None:
        fill_span(area.buffer, area.base, T.cast(0, area.buffer.dtype), size, 4 * self.plan.lanes)

    def _scores(self, query: Area, stride: int, row: Any, keys: Any, mask: Any) -> Score:
        plan, scratch, lanes = self.plan, self.scratch, self.plan.lanes
        count = plan.vectors(plan.key_vectors)
        with T.serial(groups(keys, count * lanes)) as group:
            first = T.bind(T.min(group * count, plan.key_vectors - count))
            self._multiply(
                query, stride, scratch.keys, scratch.key_starts, first, count, plan.depth_steps
            )
        scale = bound_scalar(self.arguments.record, "scale")

        def score(r: Any, place: Any) -> Any:
            # Computed twice: stored, a block's scores would leave less of the first cache.
            total = load(self._sums.buffer, self._sums.base + r * plan.sum_row + place, lanes)
            return self._scored(total, r, place, row, mask, scale)

        with T.serial(plan.rows) as r:
            top = self._top()
            with T.serial(self._written(keys)) as j:
                place = T.bind(j * lanes)
                store(top, 0, lanes, T.max(load(top, 0, lanes), score(r, place)))
            self._note_highest(r, top)
        return score

    def _keep_awake(self) -> None:
        # Half a microsecond without a product, and the next one waits for a third (measured on a
        # Xeon). This one's sums are not read: accumulators are set before they are used.
        self.unit.multiply(SUM_TILES - 1, _ROW_TILE, _PACKED_TILES[0])

    def _output(self, keys: Any, out: Any) -> None:
        plan, scratch, lanes = self.plan, self.scratch, self.plan.lanes
        starts, step = plan.value_starts, plan.step
        count = plan.vectors(len(starts))
        steps = groups(keys, step.k_group * TILE_STEPS) * TILE_STEPS
        for group in range(0, len(starts), count):
            self._multiply(
                scratch.weights,
                plan.weight_row,
                scratch.values,
                scratch.value_starts,
                min(group, len(starts) - count),
                count,
                steps,
            )
        with T.serial(plan.rows) as r:
            line = T.bind(self._sums.base + r * plan.sum_row)
            place = T.bind(out + r * plan.workload.output.strides[2])
            for index, column in enumerate(starts):
                total = load(self._sums.buffer, line + index * lanes, lanes)
                self._finish(total, r, place + column)

    def _multiply(
        self, rows: Area, stride: int, packed: Area, starts: Area, first: Any, count: int,
        steps: Any,
    ) -> None:  # fmt: skip
        """Store the sums of ``count`` panels from ``first`` on over ``steps`` steps of k.

        ``stride`` is the distance of two rows in ``rows``.
        """
        plan, unit, sums = self.plan, self.unit, self._sums
        panel_steps = plan.depth_steps if packed is self.scratch.keys else plan.key_steps
        for v in range(count):
            if plan.integer:
                unit.load(v, starts.buffer, starts.base + (first + v) * plan.lanes, 0)
            else:
                unit.zero(v)
        with T.serial(steps // TILE_STEPS) as k:
            at = rows.base + k * (TILE_STEPS * plan.step.k_group)
            unit.load(_ROW_TILE, rows.buffer, at, stride)
            for v in range(count):
                tile = _PACKED_TILES[v % len(_PACKED_TILES)]
                step = (first + v) * panel_steps + k * TILE_STEPS
                unit.load(tile, packed.buffer, packed.base + step * plan.step_size, plan.step_size)
                unit.multiply(v, _ROW_TILE, tile)
        for v in range(count):
            at = sums.base + (first + v) * plan.lanes
            unit.store(v, sums.buffer, at, plan.sum_row)

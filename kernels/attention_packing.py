"""Keys and values of one head, brought into the layout of the dot product's weights.

Codes become x − 128, which the u8 × s8 instructions take; the sums start at the dot product of
the packed operand with a zero point, negated, so that no kernel knows how its step reads codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import DataType
from tvm.script import tirx as T

from mpq_compile.kernels.attention_plan import Area, AttentionPlan, Scratch
from mpq_compile.kernels.emit import copy_short, load, permute, splat, store, vector
from mpq_compile.kernels.transpose import transposed

# Words along the side of the smallest square that is transposed by shuffles.
_LEAST_SQUARE = 4


@dataclass(frozen=True, kw_only=True)
class HeadPacking:
    """Packs one head; ``k`` and ``v`` are the kernel's arguments, ``zero_point`` that of q."""

    plan: AttentionPlan
    scratch: Scratch
    k: Any
    v: Any
    zero_point: Any

    def emit(self, k_start: Any, v_start: Any) -> None:
        """Pack the head whose keys and values start at these elements."""
        plan, scratch = self.plan, self.scratch
        with T.serial(plan.key_vectors) as panel:
            self._keys(k_start, panel)
        for panel, column in enumerate(plan.value_starts):
            self._values(v_start + column, panel)
        if plan.integer:
            self._starts(scratch.keys, scratch.key_starts, plan.key_vectors, plan.depth_steps, True)
            panels = len(plan.value_starts)
            self._starts(scratch.values, scratch.value_starts, panels, plan.key_steps, False)

    def _keys(self, start: Any, panel: Any) -> None:
        """Bring ``k_group`` elements of each key together, as one word; transpose the words."""
        plan, group = self.plan, self.plan.step.k_group
        whole, rest = divmod(plan.workload.depth, group)
        size = gcd(whole, plan.lanes)
        if rest or size < _LEAST_SQUARE:
            self._few_words(start, panel)
            return
        for lane in range(0, plan.lanes, size):
            rows = [self._key(start, panel * plan.lanes + lane + i) for i in range(size)]
            self._squares(rows, panel, lane, whole // size)

    def _squares(self, rows: Sequence[Any], panel: Any, lane: int, count: int) -> None:
        """Transpose squares of the words of keys that start at ``rows``, from ``lane`` on."""
        plan, area, group, size = self.plan, self.scratch.keys, self.plan.step.k_group, len(rows)
        stored = vector(self.k.dtype, size * group)
        words = vector(f"uint{DataType(self.k.dtype).bits * group}", size)
        with T.serial(count) as square:
            step = square * size
            vectors = [
                T.reinterpret(words, load(self.k, row + step * group, size * group)) for row in rows
            ]
            place = area.base + (panel * plan.depth_steps + step) * plan.step_size + lane * group
            place = T.bind(place)
            for index, turned in enumerate(transposed(vectors, size)):
                weights = self._weights(T.reinterpret(stored, turned), size * group)
                store(area.buffer, place + index * plan.step_size, size * group, weights)

    def _key(self, start: Any, key: Any) -> Any:
        """Return where a key starts; what is beyond the last one has no weight."""
        workload = self.plan.workload
        if workload.keys % self.plan.lanes:
            key = T.min(key, workload.keys - 1)
        return T.bind(start + key * workload.k.strides[2])

    def _few_words(self, start: Any, panel: Any) -> None:
        """Move ``k_group`` elements of each key at a time."""
        plan, area = self.plan, self.scratch.keys
        group = plan.step.k_group
        whole, rest = divmod(plan.workload.depth, group)
        with T.serial(plan.lanes) as lane:
            source = self._key(start, panel * plan.lanes + lane)
            size = plan.depth_steps * plan.step_size
            target = T.bind(area.base + panel * size + lane * group)
            if whole:
                with T.serial(whole) as step:
                    piece = load(self.k, source + step * group, group)
                    place = target + step * plan.step_size
                    store(area.buffer, place, group, self._weights(piece, group))
            if rest:
                self._rest(area.buffer, target + whole * plan.step_size, source + whole * group)

    def _rest(self, target: Any, place: Any, source: Any) -> None:
        """Move the elements that do not fill a step, then zeros."""
        rest = self.plan.workload.depth % self.plan.step.k_group
        for index in range(self.plan.step.k_group):
            value = T.cast(0, target.dtype)
            if index < rest:
                value = self._weights(self.k[source + index], 1)
            store(target, place + index, 1, value)

    def _values(self, start: Any, panel: int) -> None:
        """Interleave ``k_group`` rows of a vector of columns at a time."""
        plan, area = self.plan, self.scratch.values
        group, lanes = plan.step.k_group, plan.lanes
        order = [row * lanes + lane for lane in range(lanes) for row in range(group)]
        with T.serial(plan.key_steps) as step:
            rows = [self._row(start, step * group + row) for row in range(group)]
            joined = permute(rows, order) if group > 1 else rows[0]
            place = area.base + (panel * plan.key_steps + step) * plan.step_size
            store(area.buffer, place, group * lanes, self._weights(joined, group * lanes))

    def _row(self, start: Any, key: Any) -> Any:
        """Load a vector of columns of one key; lanes beyond the last column are arbitrary."""
        workload, lanes = self.plan.workload, self.plan.lanes
        if workload.keys < self.plan.key_steps * self.plan.step.k_group:
            key = T.min(key, workload.keys - 1)
        source = T.bind(start + key * workload.v.strides[2])
        if workload.value_depth >= lanes:
            return T.bind(load(self.v, source, lanes))
        whole = T.alloc_buffer((lanes,), self.v.dtype)
        store(whole, 0, lanes, splat(T.cast(0, self.v.dtype), lanes))
        copy_short(whole, 0, self.v, source, workload.value_depth)
        return T.bind(load(whole, 0, lanes))

    def _weights(self, value: Any, lanes: int) -> Any:
        """Return codes as the int8 of x − 128, other values as they are."""
        if not self.plan.integer:
            return value
        return T.reinterpret(vector("int8", lanes), value ^ splat(T.uint8(128), lanes))

    def _starts(self, packed: Area, starts: Area, panels: int, steps: int, keys: bool) -> None:
        """Store −Σ zp · w of each lane; the weights of softmax have zero point zero."""
        plan, code = self.plan, self.scratch.code
        lanes, step = plan.lanes, plan.step
        zero_point = T.cast(self.zero_point if keys else 0, code.buffer.dtype)
        for index in range(step.k_group):
            store(code.buffer, code.base + index, 1, zero_point)
        total = T.alloc_buffer((lanes,), "int32")
        zeros = splat(T.int32(0), lanes)
        with T.serial(panels) as panel:
            store(total, 0, lanes, zeros)
            with T.serial(steps) as index:
                x = T.bind(step.pixel(code.buffer, code.base))
                place = packed.base + (panel * steps + index) * plan.step_size
                w = T.bind(step.weights(packed.buffer, place))
                store(total, 0, lanes, step.add(load(total, 0, lanes), x, w))
            start = zeros - load(total, 0, lanes)
            store(starts.buffer, starts.base + panel * lanes, lanes, start)

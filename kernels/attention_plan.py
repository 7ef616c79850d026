"""What an attention kernel decides before it emits code: step, register block, split, scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.arguments import ELEMENT_BYTES
from mpq_compile.kernels.attention_workload import AttentionWorkload
from mpq_compile.kernels.geometry import TILE_ROWS, TILE_STEPS, vector_starts
from mpq_compile.kernels.microkernel import DotStep, step_of
from mpq_compile.kernels.staging import PAGE_BYTES
from mpq_compile.kernels.tier import Tier

# Multiply-adds below which a fork costs more than it gains, for each thread.
_SERIAL_MACS = 50_000
# Query rows below which tiles are mostly empty.
_TILE_QUERIES = 8
# Tiles that hold sums, each of one vector.
SUM_TILES = 4


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """One planned kernel.

    Args:
        rows: Query rows of one block; the last block moves back to fit.
        tasks: Tasks that share the row blocks of all heads.
        joined_steps: Dot product steps that are always taken together: those of a tile.
        most_vectors: Vectors of keys, or of output columns, in one register block.
    """

    workload: AttentionWorkload
    step: DotStep
    rows: int
    tasks: int
    joined_steps: int = 1
    most_vectors: int = 2

    @property
    def lanes(self) -> int:
        """Keys, or output columns, of one vector."""
        return self.step.lanes

    @property
    def integer(self) -> bool:
        """Tell whether the operands are codes."""
        return self.workload.compute == "int8"

    @property
    def row_blocks(self) -> int:
        """Row blocks of one head."""
        return -(-self.workload.queries // self.rows)

    @property
    def units(self) -> int:
        """Row blocks of all heads."""
        return self.workload.batch * self.workload.heads * self.row_blocks

    @property
    def depth_steps(self) -> int:
        """Dot product steps of one score."""
        return self._steps(self.workload.depth)

    @property
    def padded_depth(self) -> int:
        """Columns of q and k in whole steps."""
        return self.depth_steps * self.step.k_group

    @property
    def key_vectors(self) -> int:
        """Vectors of keys."""
        return -(-self.workload.keys // self.lanes)

    @property
    def padded_keys(self) -> int:
        """Scores of one row in the scratch."""
        return self.key_vectors * self.lanes

    @property
    def key_steps(self) -> int:
        """Dot product steps of one output element."""
        return self._steps(self.workload.keys)

    def _steps(self, extent: int) -> int:
        """Return the steps over ``extent`` elements, in whole groups of joined ones."""
        joined = self.joined_steps
        return -(-extent // (self.step.k_group * joined)) * joined

    @property
    def weight_row(self) -> int:
        """Weights of one row in the scratch."""
        return max(self.padded_keys, self.key_steps * self.step.k_group)

    @property
    def joined_vectors(self) -> int:
        """Vectors of weights that are stored together: a row of a tile, which is read as a whole.

        A load waits until all of several stores that it covers are in the cache.
        """
        return max(1, self.joined_steps * self.step.k_group // self.lanes)

    @property
    def sum_row(self) -> int:
        """Sums of one row in the scratch, of scores or of output columns."""
        return max(self.padded_keys, len(self.value_starts) * self.lanes)

    @property
    def value_starts(self) -> list[int]:
        """First output column of each vector; the last one moves back to fit."""
        return vector_starts(self.workload.value_depth, self.lanes)

    @property
    def stages_queries(self) -> bool:
        """Tell whether a step reads a widened query, or past the end of one."""
        return self.step.widens or self.workload.depth < self.padded_depth

    @property
    def stages_mask(self) -> bool:
        """Tell whether a vector would read past the end of a row of the mask."""
        return self.workload.mask is not None and self.workload.keys % self.lanes > 0

    @property
    def step_size(self) -> int:
        """Packed elements of one step and vector."""
        return self.lanes * self.step.k_group

    def vectors(self, available: int) -> int:
        """Return the vectors of a register block out of ``available`` ones."""
        return min(self.most_vectors, available)


def plan_attention(workload: AttentionWorkload, tier: Tier, threads: int) -> AttentionPlan:
    """Choose step, block and split of a workload for ``threads``."""
    tiled = uses_tiles(workload, tier)
    rows = min(TILE_ROWS if tiled else 8 if tier.registers >= 32 else 4, workload.queries)
    blocks = workload.batch * workload.heads * -(-workload.queries // rows)
    alone = workload.macs < _SERIAL_MACS * threads
    return AttentionPlan(
        workload=workload,
        step=step_of(workload.compute, tier, tier.bf16_dot and workload.compute == "bf16"),
        rows=rows,
        tasks=1 if alone else min(threads, blocks),
        joined_steps=TILE_STEPS if tiled else 1,
        most_vectors=SUM_TILES if tiled else 2,
    )


def uses_tiles(workload: AttentionWorkload, tier: Tier) -> bool:
    """Tell whether AMX tiles multiply, which pays from some rows on."""
    return tier.dot == "amx" and workload.compute != "fp32" and workload.queries >= _TILE_QUERIES


@dataclass(frozen=True, kw_only=True)
class Area:
    """One task's part of a scratch buffer: ``buffer`` from element ``base`` on."""

    buffer: Any
    base: Any


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """Scratch of one task.

    Args:
        keys: K, [key vector][step][lanes][k_group]; ``key_starts`` holds the first sums of each.
        values: V, [column vector][step][lanes][k_group]; ``value_starts`` likewise.
        highest: Highest scores of each row and lane, float32 [rows][lanes].
        weights: Weights of softmax, [rows][weight_row].
        totals: Sum of the weights of each row, [rows] in whole vectors, as are the next two.
        corrections: What is added to the sums of each row.
        factors: What scales them, float32.
        code: One element, ``k_group`` times.
        queries: Rows of q as a step reads them, in whole steps, where q itself does not do.
        scores: float32 [rows][padded keys], where vectors multiply.
        sums: What tiles leave, [rows][sum_row], where they do.
        mask: Rows of the mask, [rows][padded keys], where a vector would read past their end.
    """

    keys: Area
    key_starts: Area
    values: Area
    value_starts: Area
    highest: Area
    weights: Area
    totals: Area
    corrections: Area
    factors: Area
    code: Area
    queries: Area | None = None
    scores: Area | None = None
    sums: Area | None = None
    mask: Area | None = None


def allocate(plan: AttentionPlan) -> dict[str, tuple[Any, int]]:
    """Allocate the scratch of all tasks; return each buffer and the elements of one task."""
    buffers = {}
    for name, (size, dtype) in _sizes(plan).items():
        # What a core fetches ahead of its reading is not what the other one writes.
        apart = PAGE_BYTES // ELEMENT_BYTES[dtype] if plan.tasks > 1 else 0
        padded = -(-(size + apart) // 64) * 64
        buffers[name] = T.alloc_buffer((plan.tasks * padded,), dtype, align=64), padded
    return buffers


def scratch_of(buffers: Mapping[str, tuple[Any, int]], task: Any) -> Scratch:
    """Return the part of the scratch that belongs to one task."""
    areas = {
        name: Area(buffer=buffer, base=T.bind(task * size))
        for name, (buffer, size) in buffers.items()
    }
    return Scratch(**areas)


def _sizes(plan: AttentionPlan) -> dict[str, tuple[int, str]]:
    """Return elements of one task and dtype of each scratch buffer."""
    step, rows, vectors = plan.step, plan.rows, len(plan.value_starts)
    sums, in_vectors = step.accumulator, -(-rows // plan.lanes) * plan.lanes
    sizes = {
        "keys": (plan.key_vectors * plan.depth_steps * plan.step_size, step.weight_dtype),
        "key_starts": (plan.padded_keys, sums),
        "values": (vectors * plan.key_steps * plan.step_size, step.weight_dtype),
        "value_starts": (vectors * plan.lanes, sums),
        "highest": (rows * plan.lanes, "float32"),
        "weights": (rows * plan.weight_row, step.input_dtype),
        "totals": (in_vectors, sums),
        "corrections": (in_vectors, sums),
        "factors": (in_vectors, "float32"),
        "code": (step.k_group, step.input_dtype),
    }
    if plan.stages_queries:
        sizes["queries"] = (rows * plan.padded_depth, step.input_dtype)
    if plan.joined_steps > 1:
        sizes["sums"] = (rows * plan.sum_row, sums)
    else:
        sizes["scores"] = (rows * plan.padded_keys, "float32")
    if plan.stages_mask:
        sizes["mask"] = (rows * plan.padded_keys, "float32")
    return sizes

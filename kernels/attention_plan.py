"""What an attention kernel decides before it emits code: step, register block, split, scratch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from mpq_compile.kernels.attention_workload import AttentionWorkload
from mpq_compile.kernels.geometry import vector_starts
from mpq_compile.kernels.microkernel import DotStep, step_of
from mpq_compile.kernels.tier import Tier

# Vectors of keys, or of output columns, in one register block.
_VECTORS = 2
# Multiply-adds below which a fork costs more than it gains, for each thread.
_SERIAL_MACS = 50_000


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """One planned kernel.

    Args:
        rows: Query rows of one block; the last block moves back to fit.
        tasks: Tasks that share the row blocks of all heads.
    """

    workload: AttentionWorkload
    step: DotStep
    rows: int
    tasks: int

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
        return -(-self.workload.depth // self.step.k_group)

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
        return -(-self.workload.keys // self.step.k_group)

    @property
    def value_starts(self) -> list[int]:
        """First output column of each vector; the last one moves back to fit."""
        return vector_starts(self.workload.value_depth, self.lanes)

    @property
    def stages_queries(self) -> bool:
        """Tell whether a step reads a widened query, or past the end of one."""
        return self.step.widens or self.workload.depth % self.step.k_group > 0

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
        return min(_VECTORS, available)


def plan_attention(workload: AttentionWorkload, tier: Tier, threads: int) -> AttentionPlan:
    """Choose step, block and split of a workload for ``threads``."""
    rows = min(8 if tier.registers >= 32 else 4, workload.queries)
    blocks = workload.batch * workload.heads * -(-workload.queries // rows)
    alone = workload.macs < _SERIAL_MACS * threads
    return AttentionPlan(
        workload=workload,
        step=step_of(workload.compute, tier, tier.bf16_dot and workload.compute == "bf16"),
        rows=rows,
        tasks=1 if alone else min(threads, blocks),
    )


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
        scores: float32 [rows][padded keys]; ``highest`` of each row and lane.
        weights: Weights of softmax, [rows][padded keys].
        corrections: What is added to the sums of each row, [rows][lanes].
        factors: What scales them, float32 [rows][lanes].
        code: One element, ``k_group`` times.
        queries: Rows of q as a step reads them, in whole steps, where q itself does not do.
        mask: Rows of the mask, [rows][padded keys], where a vector would read past their end.
    """

    keys: Area
    key_starts: Area
    values: Area
    value_starts: Area
    scores: Area
    highest: Area
    weights: Area
    corrections: Area
    factors: Area
    code: Area
    queries: Area | None = None
    mask: Area | None = None


def allocate(plan: AttentionPlan) -> dict[str, tuple[Any, int]]:
    """Allocate the scratch of all tasks; return each buffer and the elements of one task."""
    buffers = {}
    for name, (size, dtype) in _sizes(plan).items():
        padded = -(-size // 64) * 64  # a cache line is not shared by two tasks
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
    sums = step.accumulator
    sizes = {
        "keys": (plan.key_vectors * plan.depth_steps * plan.step_size, step.weight_dtype),
        "key_starts": (plan.padded_keys, sums),
        "values": (vectors * plan.key_steps * plan.step_size, step.weight_dtype),
        "value_starts": (vectors * plan.lanes, sums),
        "scores": (rows * plan.padded_keys, "float32"),
        "highest": (rows * plan.lanes, "float32"),
        "weights": (rows * plan.padded_keys, step.input_dtype),
        "corrections": (rows * plan.lanes, sums),
        "factors": (rows * plan.lanes, "float32"),
        "code": (step.k_group, step.input_dtype),
    }
    if plan.stages_queries:
        sizes["queries"] = (rows * plan.padded_depth, step.input_dtype)
    if plan.stages_mask:
        sizes["mask"] = (rows * plan.padded_keys, "float32")
    return sizes

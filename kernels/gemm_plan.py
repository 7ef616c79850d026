"""What an implicit GEMM decides before it emits code: step, register block, split, staging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpq_compile.kernels.arguments import ELEMENT_BYTES, INPUT_DTYPE
from mpq_compile.kernels.blocking import Block, Split, rank_blocks, rank_splits
from mpq_compile.kernels.choice import Choice
from mpq_compile.kernels.geometry import Geometry, geometry, padded_run
from mpq_compile.kernels.microkernel import DotStep, dot_step
from mpq_compile.kernels.packing import packed_weight_size
from mpq_compile.kernels.staging import PAGE_BYTES, Staging
from mpq_compile.kernels.tier import Tier
from mpq_compile.kernels.workload import Workload


@dataclass(frozen=True, kw_only=True)
class GemmPlan:
    """One planned kernel.

    Args:
        run_steps: Dot product steps in one run.
        vectors: Vectors of output channels in one group.
        slack: Elements read past the end of the input by the last step.
        copy_lanes: Input elements copied at once.
        flat_rows: Where above 0, blocks run along the padded image and ``flat_rows`` rows of it
            are one line: the windows between two rows are computed and dropped.
        tile_steps: Dot product steps in a tile of k, which divide those of a run.
    """

    shape: Geometry
    step: DotStep
    block: Block
    split: Split
    run_steps: int
    vectors: int
    slack: int
    copy_lanes: int
    flat_rows: int = 0
    tile_steps: int = 1

    @property
    def steps(self) -> int:
        """Tiles of k in one block."""
        outer, inner = self.shape.runs
        return outer * inner * (self.run_steps // self.tile_steps)

    @property
    def line_rows(self) -> int:
        """Image rows of one row block."""
        return self.flat_rows or self.block.rows

    @property
    def row_blocks(self) -> int:
        """Row blocks of one image."""
        return -(-self.shape.out_height // self.line_rows)

    def line_pixels(self, rows: int) -> int:
        """Return the pixels along which a row block of ``rows`` rows places its blocks."""
        between = (rows - 1) * self.shape.padded_width if self.flat_rows else 0
        return between + self.shape.out_width

    def block_of(self, rows: int, vectors: int) -> Block:
        """Return the whole blocks of a line of ``rows`` rows: tails have fewer columns."""
        columns = min(self.block.columns, self.line_pixels(rows))
        return Block(rows=1 if self.flat_rows else rows, columns=columns, vectors=vectors)

    @property
    def all_row_blocks(self) -> int:
        """Row blocks of the batch."""
        return self.shape.batch * self.row_blocks

    @property
    def rows_per_task(self) -> int:
        """Row blocks of one task."""
        return -(-self.all_row_blocks // self.split.rows)

    @property
    def group_blocks(self) -> int:
        """Channel blocks of one group."""
        return -(-self.vectors // self.block.vectors)

    @property
    def channel_blocks(self) -> int:
        """Channel blocks of all groups."""
        return self.shape.groups * self.group_blocks

    @property
    def channels_per_task(self) -> int:
        """Channel blocks of one task."""
        return -(-self.channel_blocks // self.split.channels)

    @property
    def panel_size(self) -> int:
        """Weights of one vector of channels."""
        outer, inner = self.shape.runs
        return outer * inner * self.run_steps * self.step.lanes * self.step.k_group

    @property
    def line_blocks(self) -> int:
        """Blocks along one line."""
        return -(-self.line_pixels(self.line_rows) // self.block.columns)

    @property
    def turns(self) -> int:
        """Blocks that a task multiplies with one block of channels, where channels are outside."""
        return self.line_blocks * self.rows_per_task

    @property
    def tile_size(self) -> int:
        """Sums of one register block."""
        return self.block.pixels * self.block.vectors * self.step.lanes

    @property
    def tile_distance(self) -> int:
        """Sums, of four bytes, from one task's register block to the next task's."""
        return self.tile_size + PAGE_BYTES // 4

    @property
    def tile_dtype(self) -> str:
        """What the register block spills: float32 once weight groups are scaled."""
        return "float32" if self.shape.scale_groups > 1 else self.step.accumulator

    @property
    def is_staged(self) -> bool:
        """Tell whether the input is copied: padded, widened, or read past its end."""
        return self.shape.is_padded() or self.step.widens or self.slack > 0

    def first_row(self, row_block: Any) -> Any:
        """Return the first padded input row under a row block; Python or TIR integers."""
        image, block = row_block // self.row_blocks, row_block % self.row_blocks
        return image * self.shape.padded_height + block * (self.line_rows * self.shape.stride[0])

    def staging(self) -> Staging:
        """Return the scratch rows of one task."""
        return Staging(
            shape=self.shape,
            rows=self._staged_rows(),
            slack=self.slack,
            clear_slack=self.step.accumulator == "float32",
            lanes=self.copy_lanes,
            convert=self.step.staged,
        )

    def _staged_rows(self) -> int:
        """Return the most padded input rows that lie under one task's output rows."""
        shape, needed = self.shape, 0
        for first in range(0, self.all_row_blocks, self.rows_per_task):
            last = min(first + self.rows_per_task, self.all_row_blocks) - 1
            image, block = divmod(last, self.row_blocks)
            bottom = min((block + 1) * self.line_rows, shape.out_height) - 1
            end = image * shape.padded_height + bottom * shape.stride[0] + shape.window_rows
            needed = max(needed, end - self.first_row(first))
        return needed


def plan_gemm(workload: Workload, tier: Tier, threads: int, choice: Choice | None) -> GemmPlan:
    """Plan a workload for ``threads`` by ``choice``; None is the cost model's."""
    choice = choice or gemm_choices(workload, tier, threads)[0]
    shape, step = geometry(workload), dot_step(workload, tier)
    return GemmPlan(
        shape=shape,
        step=step,
        block=choice.block,
        split=choice.split,
        run_steps=padded_run(workload, tier) // step.k_group,
        vectors=-(-shape.group_outputs // step.lanes),
        slack=-shape.run % step.k_group,
        copy_lanes=4 * tier.lanes // ELEMENT_BYTES[step.input_dtype],
    )


def gemm_choices(workload: Workload, tier: Tier, threads: int) -> list[Choice]:
    """Return what a plan may choose, the cost model's choice first."""
    shape, step = geometry(workload), dot_step(workload, tier)
    vectors = -(-shape.group_outputs // step.lanes)
    size, dtype = packed_weight_size(workload, tier)
    blocks = rank_blocks(
        shape,
        vectors,
        tier.registers,
        step.cost,
        panel_bytes=size * ELEMENT_BYTES[dtype] // (shape.groups * vectors),
        vector_bytes=step.lanes * step.k_group * ELEMENT_BYTES[dtype],
        element_bytes=ELEMENT_BYTES[step.input_dtype],
    )
    return with_splits(workload, tier, [(block, 0) for block in blocks], threads)


def with_splits(
    workload: Workload, tier: Tier, blocks: Sequence[tuple[Block, int]], threads: int
) -> list[Choice]:
    """Return choices of (block, flat rows): the first with all its splits, others with their best.

    Block and split are searched one after the other: all pairs would take several times as long.
    """
    choices = [
        [
            Choice(block=block, split=split, flat_rows=flat_rows)
            for split in _splits(workload, tier, block, flat_rows or block.rows, threads)
        ]
        for block, flat_rows in blocks
    ]
    return [*choices[0], *(others[0] for others in choices[1:])]


def _splits(
    workload: Workload, tier: Tier, block: Block, line_rows: int, threads: int
) -> list[Split]:
    """Split the channel blocks and the lines of a workload over ``threads``, best first."""
    shape = geometry(workload)
    vectors = -(-shape.group_outputs // tier.lanes)
    weights, dtype = packed_weight_size(workload, tier)
    return rank_splits(
        macs=workload.macs,
        channel_blocks=shape.groups * -(-vectors // block.vectors),
        row_blocks=shape.batch * -(-shape.out_height // line_rows),
        input_bytes=workload.input_size * ELEMENT_BYTES[INPUT_DTYPE[workload.compute]],
        weight_bytes=weights * ELEMENT_BYTES[dtype],
        threads=threads,
    )

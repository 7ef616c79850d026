"""What is free in the schedule of a matrix multiply, as one value and as text. No tvm, no NumPy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from mpq_compile.errors import LoweringError
from mpq_compile.kernels.blocking import Block, Split

_TEXT = re.compile(
    r"r(?P<rows>\d+)c(?P<columns>\d+)v(?P<vectors>\d+)(?:f(?P<flat>\d+))?"
    r"/s(?P<channel_tasks>\d+)x(?P<row_tasks>\d+)(?P<outer>[rc])(?:p(?P<prefetch>\d+))?"
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One schedule. Weights are packed alike for every choice of a workload.

    Its text is ``r1c9v3/s2x1c``: a block of 1 row × 9 columns × 3 vectors, 2 tasks over channels
    × 1 over rows, channels in the outer loop of a task (``r`` for rows). ``f7`` after the block
    are the flat rows of AMX tiles, ``p4096`` at the end the bytes of prefetch.

    Args:
        block: What registers or tiles hold.
        split: Tasks, and the order of a task's loops.
        flat_rows: See ``GemmPlan.flat_rows``.
        prefetch_bytes: How far ahead a few-row kernel prefetches; 0 for not at all.
    """

    block: Block
    split: Split
    flat_rows: int = 0
    prefetch_bytes: int = 0

    def __str__(self) -> str:
        block, split = self.block, self.split
        flat = f"f{self.flat_rows}" if self.flat_rows else ""
        prefetch = f"p{self.prefetch_bytes}" if self.prefetch_bytes else ""
        outer = "r" if split.rows_outer else "c"
        return (
            f"r{block.rows}c{block.columns}v{block.vectors}{flat}"
            f"/s{split.channels}x{split.rows}{outer}{prefetch}"
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the choice of a text; raise ``LoweringError`` where it is none."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise LoweringError(
                "not a schedule",
                expected="block and split, such as r1c9v3/s2x1c",
                found=repr(text),
                remedy="use the text of a Choice",
            )
        number = {k: int(v or 0) for k, v in found.groupdict().items() if k != "outer"}
        return cls(
            block=Block(rows=number["rows"], columns=number["columns"], vectors=number["vectors"]),
            split=Split(
                channels=number["channel_tasks"],
                rows=number["row_tasks"],
                rows_outer=found["outer"] == "r",
            ),
            flat_rows=number["flat"],
            prefetch_bytes=number["prefetch"],
        )


# The choice that was found best for a workload; None for the cost model's.
ChoiceOf = Callable[[Any], Choice | None]


def modelled(workload: Any) -> Choice | None:
    """Leave every choice to the cost model."""
    return None

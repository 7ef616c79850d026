"""What the runtime knows of a library without the compiler: names and sizes of its functions."""

from __future__ import annotations

from dataclasses import dataclass

# The workload that is timed beside a network (``lower.reference``), and what a task of it works on:
# float32 cells, int32 words of a table that it walks through, and of the flags by which tasks wait
# for each other. Another workload gets another name: times of the two do not compare.
REFERENCE = "mpq_reference_2"
REFERENCE_CELLS = 128
REFERENCE_TABLE = 1024
REFERENCE_FLAGS = 16

# While the first word of the arena holds this number, the network writes at the arena's end when
# each task began and ended each phase: int64 nanoseconds, [phases, tasks, 2]. Memory that nobody
# has set holds it by no accident.
TRACED = 0x6D70_7174


@dataclass(frozen=True, kw_only=True)
class Step:
    """A kernel that the network calls.

    Args:
        name: The site or the node of the graph that it computes; its function where a pass joined
            several nodes in float.
        kernel: Its function.
        phases: Pieces of it between which all tasks meet.
    """

    name: str
    kernel: str
    phases: int

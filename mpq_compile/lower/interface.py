"""What the runtime knows of a library without the compiler: names and sizes of its functions."""

from __future__ import annotations

# The workload that is timed beside a network (``lower.reference``), and what a task of it works on:
# float32 cells, int32 words of a table that it walks through, and of the flags by which tasks wait
# for each other. Another workload gets another name: times of the two do not compare.
REFERENCE = "mpq_reference_2"
REFERENCE_CELLS = 128
REFERENCE_TABLE = 1024
REFERENCE_FLAGS = 16

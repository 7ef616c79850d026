"""What the runtime knows of a library without the compiler: names and sizes of its functions."""

from __future__ import annotations

# The workload that is timed beside a network (``lower.reference``), and what a task of it works on:
# float32 cells, and int32 words of the flags by which tasks wait for each other.
REFERENCE = "mpq_reference"
REFERENCE_CELLS = 128
REFERENCE_FLAGS = 16

"""What the runtime knows of a library without the compiler: names and sizes of its functions."""

from __future__ import annotations

# The workload that is timed beside a network (``lower.reference``), and the float32 cells that a
# task of it works on.
REFERENCE = "mpq_reference"
REFERENCE_CELLS = 128

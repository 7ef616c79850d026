"""What a launcher such as torchrun tells a process by environment variables."""

from __future__ import annotations

import os

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Tell whether this process is one of several that a launcher started."""
    return all(os.environ.get(name) for name in _VARIABLES) and world_size() > 1


def rank() -> int:
    """Return the number of this process."""
    return int(os.environ["RANK"])


def world_size() -> int:
    """Return how many processes were started."""
    return int(os.environ["WORLD_SIZE"])


def address() -> str:
    """Return where the processes meet."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"

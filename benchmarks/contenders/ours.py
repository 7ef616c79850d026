"""This project's networks, called as a user calls them: torch in, torch out."""

from __future__ import annotations

import mpq_compile as mpq
from contenders.task import NetTask, Prepared


def prepare(task: NetTask, candidate: str) -> Prepared:
    """Build the uniform assignment of a candidate."""
    return task.prepared(mpq.assign(task.module, task.example, task.calibration, candidate))

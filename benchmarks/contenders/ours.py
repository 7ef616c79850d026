"""This project's networks, called as a user calls them: torch in, torch out."""

from __future__ import annotations

from collections.abc import Sequence

import mpq_compile as mpq
from contenders.task import NetTask, Prepared


def prepare(task: NetTask, candidates: Sequence[str], latency_ms: float | None) -> Prepared:
    """Build the uniform assignment of a candidate or, within a budget, the mix of several that
    loses least, as the planner finds, builds and measures it."""
    given = task.module, task.example, task.calibration
    if latency_ms is None:
        return task.prepared(mpq.assign(*given, *candidates))
    budget = mpq.Budget(latency_ms=latency_ms)
    return task.prepared(mpq.compile(*given, budget=budget, candidates=list(candidates)))

"""This project's networks, called as a user calls them: torch in, torch out."""

from __future__ import annotations

import mpq_compile as mpq
from contenders.task import NetTask, Prepared


def prepare(task: NetTask, candidate: str) -> Prepared:
    """Build the uniform assignment of a candidate, or of ``w8a8+bf16@1.5`` the mix of these that
    loses least within 1.5 ms, as the planner finds, builds and measures it."""
    given = task.module, task.example, task.calibration
    names, _, limit = candidate.partition("@")
    if not limit:
        return task.prepared(mpq.assign(*given, names))
    budget = mpq.Budget(latency_ms=float(limit))
    return task.prepared(mpq.compile(*given, budget=budget, candidates=names.split("+")))

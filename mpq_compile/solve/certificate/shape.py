"""Whether a solution has the form of one: it may come from a file, or from anyone's solver."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from mpq_compile.errors import PlanError
from mpq_compile.solve.problem import Problem, Solution


def require(problem: Problem, solution: Solution) -> None:
    """Raise ``PlanError`` where the arguments are of other types."""
    for value, kind in ((problem, Problem), (solution, Solution)):
        if not isinstance(value, kind):
            raise PlanError(
                f"not a {kind.__name__}",
                where="check",
                expected="a Problem and a Solution",
                found=type(value).__name__,
                remedy=f"read JSON with {kind.__name__}.from_json",
            )


def malformed(solution: Solution) -> list[str]:
    """Return which fields are not of the form that a solution's fields have."""
    return list(_faults(solution))


def _faults(solution: Solution) -> Iterator[str]:
    if not isinstance(solution.assignment, Mapping):
        yield "the assignment is no mapping from groups to candidates"
    if not _numbers(solution.usage):
        yield "the usage is no mapping from axes to finite numbers"
    for name in ("loss", "bound", "gap"):
        value = getattr(solution, name)
        if value is not None and not _number(value):
            yield f"{name} is no finite number: {value!r}"
    certificate = solution.certificate
    if not isinstance(certificate, Mapping):
        yield "the certificate is no mapping"
        return
    if "multipliers" in certificate and not _numbers(certificate["multipliers"]):
        yield "the multipliers are no mapping from axes to finite numbers"
    if not _number(certificate.get("lagrangian_bound", 0.0)):
        yield f"lagrangian_bound is no finite number: {certificate['lagrangian_bound']!r}"
    rows = certificate.get("reduced_costs", {})
    if not isinstance(rows, Mapping) or not all(map(_row, rows.values())):
        yield "the reduced costs are no mapping from groups to lists of finite numbers"
    blocks, messages = certificate.get("blocks", []), certificate.get("messages", [])
    if not (_is_list(blocks) and all(map(_row, blocks)) and _is_list(messages)):
        yield "blocks or messages are no lists"


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: Any) -> bool:
    return isinstance(values, Mapping) and all(map(_number, values.values()))


def _row(values: Any) -> bool:
    return _is_list(values) and all(map(_number, values))


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str)

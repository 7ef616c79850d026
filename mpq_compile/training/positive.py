"""Numbers of the user's that must be above zero. Imports no torch."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from mpq_compile.errors import PlanError


def check_count(name: str, value: Any) -> None:
    """Raise ``PlanError`` for what is no whole number of 1 or more."""
    _check(name, value, Integral, "a whole number, 1 or more")


def check_rate(name: str, value: Any) -> None:
    """Raise ``PlanError`` for what is no finite number above 0."""
    _check(name, value, Real, "a finite number above 0")


def _check(name: str, value: Any, kind: type, expected: str) -> None:
    number = isinstance(value, kind) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise PlanError(
            f"{name} must be positive",
            where=name,
            expected=expected,
            found=repr(value),
            remedy="correct the number, or leave it out",
        )

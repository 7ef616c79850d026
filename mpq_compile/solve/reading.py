"""Strict readers for parsed JSON: a refusal names the place, the expectation and what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NoReturn

from mpq_compile.errors import PlanError, nearest

Matrix = tuple[tuple[float | None, ...], ...]


def refuse(where: str, message: str, *, expected: object, found: object, remedy: str) -> NoReturn:
    """Raise ``PlanError`` with all of its parts; long values are cut."""
    shown = found if isinstance(found, str) else repr(found)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    raise PlanError(message, where=where, expected=expected, found=shown, remedy=remedy)


def read_object(
    value: Any, where: str, *, required: Sequence[str], optional: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Return ``value`` if it is an object with the required keys and no unknown ones."""
    known = (*required, *optional)
    if not isinstance(value, Mapping):
        refuse(
            where,
            "not an object",
            expected=f"an object with {', '.join(known)}",
            found=value,
            remedy="write the object",
        )
    for key in value:
        if key not in known:
            refuse(
                where,
                f"unknown key {key!r}",
                expected=f"one of {', '.join(known)}",
                found=key,
                remedy=nearest(str(key), known),
            )
    for key in required:
        if key not in value:
            refuse(
                where,
                f"key {key!r} is missing",
                expected=f"an object with {', '.join(required)}",
                found=", ".join(map(str, value)) or "an empty object",
                remedy=f"add {key!r}",
            )
    return value


def read_list(value: Any, where: str, *, nonempty: bool = False) -> Sequence[Any]:
    """Return ``value`` if it is a list, and not an empty one where ``nonempty`` is set."""
    if isinstance(value, (list, tuple)) and (value or not nonempty):
        return value
    refuse(
        where,
        "not a list" if not isinstance(value, (list, tuple)) else "the list is empty",
        expected="a list" + (" with at least one entry" if nonempty else ""),
        found=value,
        remedy="write the list",
    )


def read_name(value: Any, where: str) -> str:
    """Return ``value`` if it is a string and not empty."""
    if isinstance(value, str) and value:
        return value
    refuse(where, "not a name", expected="a string", found=value, remedy="write a name")


def read_number(value: Any, where: str) -> float:
    """Return ``value`` as a float if it is a finite number (a truth value is not)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    try:
        result = float(value) if number else math.nan
    except OverflowError:
        result = math.inf
    if math.isfinite(result):
        return result
    refuse(
        where,
        "not a finite number",
        expected="a finite number",
        found=value,
        remedy="write a number; leave out what was not measured",
    )


def read_numbers(value: Any, where: str) -> dict[str, float]:
    """Return an object of finite numbers, such as costs or a budget."""
    if not isinstance(value, Mapping):
        refuse(
            where,
            "not an object",
            expected='an object such as {"latency_us": 5.0}',
            found=value,
            remedy="write the object",
        )
    return {read_name(k, where): read_number(v, f"{where}.{k}") for k, v in value.items()}


def read_matrix(value: Any, where: str, *, rows: int, columns: int) -> Matrix:
    """Return a matrix of finite numbers; None entries (JSON null) stay."""
    _check_length(read_list(value, where), where, rows, "rows: one for each candidate of a")
    return tuple(_read_row(row, f"{where}[{i}]", columns) for i, row in enumerate(value))


def _read_row(value: Any, where: str, columns: int) -> tuple[float | None, ...]:
    row = read_list(value, where)
    _check_length(row, where, columns, "columns: one for each candidate of b")
    return tuple(
        None if entry is None else read_number(entry, f"{where}[{j}]")
        for j, entry in enumerate(row)
    )


def _check_length(value: Sequence[Any], where: str, length: int, unit: str) -> None:
    if len(value) != length:
        refuse(
            where,
            "wrong matrix size",
            expected=f"{length} {unit}",
            found=len(value),
            remedy="rows are a's candidates, columns are b's",
        )

"""Data sets of Hugging Face's ``datasets``, by what they look like: the package is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from mpq_compile.data.wanted import Reading, Wanted
from mpq_compile.errors import CalibrationError


def accepts(data: Any) -> bool:
    """Tell whether ``data`` is a data set, or several splits of one."""
    return hasattr(data, "column_names") and (hasattr(data, "features") or _is_splits(data))


def read(data: Any, wanted: Wanted) -> Reading:
    """Return rows that are drawn; the first ones of an ``IterableDataset``.

    Columns are told by name: those that are called like the arguments of ``forward``, and
    ``labels`` or ``label``; where the model has one input, the only other column will do.

    Raises:
        CalibrationError: Several splits.
    """
    if _is_splits(data):
        raise CalibrationError(
            "a data set of several splits",
            expected="one split",
            found=", ".join(data),
            remedy=f"choose one: calibration[{next(iter(data), 'train')!r}]",
        )
    name = getattr(getattr(data, "info", None), "dataset_name", None) or type(data).__name__
    if not hasattr(data, "__len__"):
        first = islice(iter(data), wanted.most)
        return Reading(items=first, what=f"{name}: the first samples")
    rows = (data[int(index)] for index in wanted.chosen(len(data)))
    return Reading(items=rows, what=f"{name}: {wanted.how(len(data))}")


def _is_splits(data: Any) -> bool:
    return isinstance(data, Mapping) and hasattr(data, "column_names")

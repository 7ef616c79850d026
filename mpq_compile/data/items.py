"""Batches and samples in all their forms → the model's inputs, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpq_compile.data.samples import LABELS
from mpq_compile.data.wanted import Wanted
from mpq_compile.errors import CalibrationError

# What else labels are called among named columns.
_LABEL_NAMES = (LABELS, "label")


def inputs_and_labels(item: Any, wanted: Wanted, where: str) -> tuple[tuple[Any, ...], Any]:
    """Take a batch or a sample apart: the model's inputs in order, and labels or None.

    Args:
        item: A value, a tuple of the inputs, ``(inputs, labels)``, the inputs with labels after
            them, or a mapping from names to values.
        wanted: What the model takes.
        where: What to call the item in errors.

    Raises:
        CalibrationError: A mapping whose names do not tell the inputs.
    """
    if isinstance(item, Mapping):
        return _of_columns(item, wanted, where)
    if not isinstance(item, (tuple, list)):
        return (item,), None
    if len(item) == 2 and isinstance(item[0], (tuple, list)):
        return tuple(item[0]), item[1]
    if len(item) == len(wanted.shapes) + 1:
        return tuple(item[:-1]), item[-1]
    return tuple(item), None


def _of_columns(item: Mapping[str, Any], wanted: Wanted, where: str) -> tuple[tuple[Any, ...], Any]:
    """Columns that are called like the inputs; else the only one, where one input is wanted."""
    free = [name for name in _LABEL_NAMES if name in item and name not in wanted.names]
    labels = item[free[0]] if free else None
    if set(wanted.names) <= set(item):
        return tuple(item[name] for name in wanted.names), labels
    others = [name for name in item if name not in _LABEL_NAMES]
    if len(wanted.names) == len(others) == 1:
        return (item[others[0]],), labels
    raise CalibrationError(
        "the columns do not tell the model's inputs",
        where=where,
        expected=f"columns {', '.join(wanted.names)}, optionally {LABELS!r}",
        found=", ".join(map(str, item)) or "none",
        remedy="rename the columns like the arguments of forward, or leave all others out",
    )


def as_tensor(value: Any, dtype: str | None = None) -> Any:
    """Return arrays and numbers as tensors, and what is neither as it is.

    Args:
        value: A tensor and an array keep their type; numbers in lists have none.
        dtype: The type that plain numbers get, where they are of its kind.
    """
    if isinstance(value, Tensor):
        return value
    array = value if isinstance(value, np.ndarray) else _array(value, dtype)
    if array is None or array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        return value
    # A copy: torch can neither read foreign byte orders nor promise not to write.
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("=")))


def _array(value: Any, dtype: str | None) -> np.ndarray | None:
    if not isinstance(value, (bool, int, float, np.generic, list, tuple)):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        return None
    plain = dtype is not None and not isinstance(value, np.generic)
    return array.astype(dtype) if plain and array.dtype.kind == np.dtype(dtype).kind else array


def labels_tensor(labels: Any, where: str) -> Tensor | None:
    """Return labels as a tensor; None for none.

    Raises:
        CalibrationError: They are not numbers.
    """
    if labels is None:
        return None
    found = as_tensor(labels)
    if isinstance(found, Tensor):
        return found
    try:
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            "the labels are not numbers",
            where=where,
            expected="one class number for each sample",
            found=f"{type(labels).__name__}: {error}",
            remedy="give class numbers, or inputs alone: most metrics need no labels",
        ) from error

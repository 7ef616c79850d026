"""What the table of operators holds: a function, and which of its inputs must be known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A known value is an array: of numbers, or of objects where a size is free (``torch.SymInt``).
Known = np.ndarray
# Of more elements values are weights: nothing asks for them while a graph is traced.
LARGEST_KNOWN = 2**16
Result = Tensor | Known | Sequence[Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """How one operator of ONNX is computed.

    Args:
        function: ``(node, *inputs) -> tensor or tensors`` with PyTorch, or an array of sizes; an
            input that is left out is None.
        known: Positions of inputs that are arrays: shapes, axes, scales. Where such an input is
            computed from data, the operator is refused.
        either: Positions of inputs that are arrays where their values are known, else tensors.
        host: ``(node, *arrays) -> array`` for sizes and other integers that are all known, or
            None where NumPy lacks the type.
    """

    function: Callable[..., Result]
    known: tuple[int, ...] = ()
    either: tuple[int, ...] = ()
    host: Callable[..., Known | None] | None = None


def integers(value: Known | None) -> list[Any]:
    """Return a known vector as Python integers, free sizes as they are."""
    return [] if value is None else np.atleast_1d(value).tolist()


def host_array(make: Callable[[tuple[int, ...]], Known], sizes: Known) -> Known | None:
    """Return ``make(sizes)`` where no size is free and it stays small, else None."""
    shape = integers(sizes)
    if not all(isinstance(size, int) for size in shape) or math.prod(shape) > LARGEST_KNOWN:
        return None
    return make(tuple(shape))


def number(value: Known | Tensor | None) -> float | int | bool | None:
    """Return the number of a known array of one element, else None."""
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype == object:
        return None
    return value.reshape(-1)[0].item()


def tensor(value: Known | Tensor) -> Tensor:
    """Return a known value as a tensor; free sizes stay free."""
    if isinstance(value, Tensor):
        return value
    if value.dtype != object:
        return torch.from_numpy(np.array(value))
    flat = [torch.scalar_tensor(size, dtype=torch.int64) for size in value.reshape(-1).tolist()]
    return torch.stack(flat).reshape(value.shape) if flat else torch.zeros(value.shape).long()


def scalar_or_tensor(value: Known | Tensor, other: Known | Tensor) -> Any:
    """Return a number where a known value is one and ``other`` is a tensor, else a tensor.

    PyTorch writes ``x * 0.5`` with a number; so do we, where that leaves the shape of the other
    operand as it is.
    """
    plain = number(value)
    fits = isinstance(value, np.ndarray) and isinstance(other, Tensor) and value.ndim <= other.ndim
    return plain if plain is not None and fits else tensor(value)

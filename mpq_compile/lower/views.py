"""Tensors that lie in another tensor's buffer: what a movement would copy, as strides.

Movements are emitted as copies; beside the copy, a value notes where the same elements lie already.
A kernel that reads strided operands takes the view, and the copy, which nobody reads then, is
dropped by dead code elimination.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """Elements of a flat buffer.

    Args:
        var: Relax variable of the buffer.
        size: Elements of the buffer.
        shape: Logical shape of the view.
        strides: Elements between neighbours, one an axis; 0 where an axis is broadcast.
        offset: Element at which the view starts.
    """

    var: Any
    size: int
    shape: Shape
    strides: Shape
    offset: int = 0

    @property
    def is_dense(self) -> bool:
        """Tell whether the view is its whole buffer, in order."""
        steps = zip(self.shape, self.strides, contiguous(self.shape), strict=True)
        in_order = all(n == 1 or stride == step for n, stride, step in steps)
        return in_order and self.size == math.prod(self.shape)

    def permuted(self, order: Sequence[int]) -> View:
        """Return the view with its axes in another order."""
        return replace(
            self,
            shape=tuple(self.shape[axis] for axis in order),
            strides=tuple(self.strides[axis] for axis in order),
        )

    def sliced(self, axis: int, start: int, step: int, size: int) -> View:
        """Return every ``step``-th of ``size`` elements of an axis."""
        return replace(
            self,
            shape=_with(self.shape, axis, size),
            strides=_with(self.strides, axis, self.strides[axis] * step),
            offset=self.offset + start * self.strides[axis],
        )

    def reshaped(self, shape: Shape) -> View | None:
        """Return the view in another shape, or None where its strides do not allow it."""
        strides = _reshaped_strides(self.shape, self.strides, shape)
        return None if strides is None else replace(self, shape=shape, strides=strides)


def dense(var: Any, shape: Shape) -> View:
    """Return the view of a contiguous tensor."""
    return View(var=var, size=math.prod(shape), shape=shape, strides=contiguous(shape))


def contiguous(shape: Shape) -> Shape:
    """Return the strides of a contiguous tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _with(values: Shape, axis: int, value: int) -> Shape:
    return (*values[:axis], value, *values[axis + 1 :])


def _reshaped_strides(before: Shape, strides: Shape, after: Shape) -> Shape | None:
    """Merge axes that lie one in another, then split them from the innermost on."""
    runs: list[tuple[int, int]] = []
    for size, stride in zip(before, strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    result = []
    for size in reversed(after):
        if size == 1:
            result.append(0)
            continue
        total, stride = runs.pop()
        if total % size:
            return None
        result.append(stride)
        if total > size:
            runs.append((total // size, stride * size))
    return tuple(reversed(result))

"""Operators that make values: of shapes, of attributes, of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpq_compile.onnx_import.operator import (
    LARGEST_KNOWN,
    Known,
    Operator,
    host_array,
    integers,
    tensor,
)
from mpq_compile.onnx_import.program import DTYPES, Node


def shape(node: Node, x: Tensor) -> Known:
    """Sizes are numbers, and the free batch a ``SymInt``: no tensor is made of them."""
    start, end = node.get("start", 0), node.get("end")
    return _sizes(list(x.shape)[start:end])


def _shape_known(node: Node, x: Known) -> Known:
    return _sizes(list(x.shape)[node.get("start", 0) : node.get("end")])


def _sizes(sizes: Sequence[int | torch.SymInt]) -> Known:
    fixed = all(isinstance(size, int) for size in sizes)
    array = np.empty(len(sizes), dtype=np.int64 if fixed else object)
    array[:] = sizes
    return array


def size(node: Node, x: Tensor) -> Known:
    count = x.numel()
    return np.asarray(count, dtype=np.int64 if isinstance(count, int) else object)


def constant(node: Node) -> Tensor:
    for name, dtype in (
        ("value_int", torch.int64),
        ("value_ints", torch.int64),
        ("value_float", torch.float32),
        ("value_floats", torch.float32),
    ):
        if name in node.attributes:
            return torch.tensor(node.get(name), dtype=dtype)
    value = node.get("value")
    if not isinstance(value, Tensor):
        raise node.unsupported(f"a constant of {', '.join(node.attributes)}")
    return value


def constant_of_shape(node: Node, sizes: Known) -> Tensor:
    value, dtype = _filling(node)
    return torch.full(integers(sizes), value, dtype=dtype)


def _known_of_shape(node: Node, sizes: Known) -> Known | None:
    value, dtype = _filling(node)
    kind = getattr(np, str(dtype).removeprefix("torch."), None)
    return kind and host_array(lambda shape: np.full(shape, value, kind), sizes)


def _filling(node: Node) -> tuple[Any, torch.dtype]:
    """Return the number to fill with, and its type: 0.0 where the file gives none."""
    value = node.get("value")
    return (0.0, torch.float32) if value is None else (value.tolist()[0], value.dtype)


def arange(node: Node, start: Known, limit: Known, step: Known) -> Tensor:
    bounds = [integers(value)[0] for value in (start, limit, step)]
    dtype = None if start.dtype == object else tensor(start).dtype
    return torch.arange(*bounds, dtype=dtype)


def _known_arange(node: Node, start: Known, limit: Known, step: Known) -> Known | None:
    if object in (start.dtype, limit.dtype, step.dtype):
        return None
    bounds = (value.reshape(-1)[0] for value in (start, limit, step))
    found = np.arange(*bounds, dtype=start.dtype)
    return found if found.size <= LARGEST_KNOWN else None


def eye_like(node: Node, x: Tensor) -> Tensor:
    dtype = DTYPES[node.get("dtype")] if node.get("dtype") else x.dtype
    place = node.get("k", 0)
    rows, columns = (torch.arange(n) for n in x.shape)
    return (columns[None] - rows[:, None] == place).to(dtype)


SOURCES = {
    "Shape": Operator(function=shape, host=_shape_known),
    "Size": Operator(function=size),
    "Constant": Operator(function=constant),
    "ConstantOfShape": Operator(function=constant_of_shape, known=(0,), host=_known_of_shape),
    "Range": Operator(function=arange, known=(0, 1, 2), host=_known_arange),
    "EyeLike": Operator(function=eye_like),
}

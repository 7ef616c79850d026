"""Operators that make values: of shapes, of attributes, of nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator, integers, tensor
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
    value = node.get("value", torch.zeros(1))
    return torch.full(integers(sizes), value.reshape(-1)[0].item(), dtype=value.dtype)


def arange(node: Node, start: Known, limit: Known, step: Known) -> Tensor:
    bounds = [integers(value)[0] for value in (start, limit, step)]
    dtype = None if start.dtype == object else tensor(start).dtype
    return torch.arange(*bounds, dtype=dtype)


def eye_like(node: Node, x: Tensor) -> Tensor:
    dtype = DTYPES[node.get("dtype")] if node.get("dtype") else x.dtype
    place = node.get("k", 0)
    rows, columns = (torch.arange(n) for n in x.shape)
    return (columns[None] - rows[:, None] == place).to(dtype)


SOURCES = {
    "Shape": Operator(function=shape, host=_shape_known),
    "Size": Operator(function=size),
    "Constant": Operator(function=constant),
    "ConstantOfShape": Operator(function=constant_of_shape, known=(0,)),
    "Range": Operator(function=arange, known=(0, 1, 2)),
    "EyeLike": Operator(function=eye_like),
}

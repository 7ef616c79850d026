"""Layers of two inputs, and bags of rows, in the terms of products, norms and sums."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from mpq_compile.passes.base import (
    add_constant,
    argument,
    call,
    constant,
    is_call,
    replace,
    sizes_of,
)

aten = torch.ops.aten


def _bilinear(module: fx.GraphModule, node: fx.Node) -> None:
    """y_o = aᵀ W_o b + c: a linear layer of the first input, then a product with the second."""
    a, b, weight, bias = (*node.args, None)[:4]
    kernel, shape = constant(module, weight), sizes_of(b)
    if kernel is None or shape is None:
        return
    outputs, left, right = kernel.shape
    wide = kernel.transpose(1, 2).reshape(outputs * right, left)
    matrix = add_constant(module, node, f"{weight.target}_transposed", wide)
    matrix.meta["val"] = wide
    rows = [size if isinstance(size, int) else -1 for size in shape[:-1]]
    if rows.count(-1) > 1:
        return
    products = call(module, node, aten.linear.default, a, matrix, None)
    apart = call(module, node, aten.reshape.default, products, [*rows, outputs, right])
    column = call(module, node, aten.unsqueeze.default, b, -1)
    y = call(
        module, node, aten.squeeze.dim, call(module, node, aten.matmul.default, apart, column), -1
    )
    if bias is None:
        node.replace_all_uses_with(y)
        module.graph.erase_node(node)
    else:
        replace(module, node, aten.add.Tensor, (y, bias))


def _pairwise_distance(module: fx.GraphModule, node: fx.Node) -> None:
    """‖a − b + ε‖ along the last dimension."""
    a, b = node.args[:2]
    order, epsilon = argument(node, 2, "p", 2.0), argument(node, 3, "eps", 1e-6)
    difference = call(module, node, aten.sub.Tensor, a, b)
    moved = call(module, node, aten.add.Tensor, difference, epsilon)
    keep = argument(node, 4, "keepdim", False)
    replace(module, node, aten.linalg_vector_norm.default, (moved, order, [-1], keep))


def _distances(module: fx.GraphModule, node: fx.Node) -> None:
    """Euclidean distances of all rows: √(‖a‖² + ‖b‖² − 2 a·b), no less than zero."""
    a, b = node.args[:2]
    if argument(node, 2, "p", 2.0) != 2 or sizes_of(b) is None:
        return
    squares = []
    for x in (a, b):
        square = call(module, node, aten.mul.Tensor, x, x)
        squares.append(call(module, node, aten.sum.dim_IntList, square, [-1], True))
    across = call(module, node, aten.transpose.int, squares[1], -2, -1)
    sums = call(module, node, aten.add.Tensor, squares[0], across)
    turned = call(module, node, aten.transpose.int, b, -2, -1)
    products = call(module, node, aten.matmul.default, a, turned)
    twice = call(module, node, aten.mul.Tensor, products, 2.0)
    apart = call(module, node, aten.sub.Tensor, sums, twice)
    least = call(module, node, aten.clamp.default, apart, 0.0)
    replace(module, node, aten.sqrt.default, (least,))


_SUM, _MEAN, _GREATEST = range(3)  # how a bag is made of its rows


def _bag(module: fx.GraphModule, node: fx.Node) -> None:
    """Rows [B, N] of a table, added up, averaged, or the greatest: bags of one size.

    ``nn.EmbeddingBag`` flattens them and counts offsets [0, N, …], from which N is known.
    """
    table, rows, offsets = node.args[:3]
    mode: Any = argument(node, 4, "mode", 0)
    weights = argument(node, 6, "per_sample_weights")
    padding = argument(node, 8, "padding_idx", -1)
    value = table.meta.get("val") if isinstance(table, fx.Node) else None
    size = _bag_size(module, rows, offsets)
    picks = list(node.users)
    plain = padding in (None, -1) and argument(node, 7, "include_last_offset", False) is False
    if size is None or not plain or any(pick.args[1] != 0 for pick in picks) or value is None:
        return
    grouped = call(module, node, aten.reshape.default, rows, [-1, size])
    found = call(module, node, aten.embedding.default, table, grouped)
    if weights is not None:
        factors = call(module, node, aten.reshape.default, weights, [-1, size, 1])
        found = call(module, node, aten.mul.Tensor, found, factors)
    if mode == _GREATEST:
        several = call(module, node, aten.max.dim, found, 1)
        bags = call(module, node, operator.getitem, several, 0)
    else:
        reduce = aten.sum.dim_IntList if mode == _SUM else aten.mean.dim
        bags = call(module, node, reduce, found, [1])
    for pick in picks:
        pick.replace_all_uses_with(bags)
        module.graph.erase_node(pick)
    module.graph.erase_node(node)


def _bag_size(module: fx.GraphModule, rows: Any, offsets: Any) -> int | None:
    """Return how many rows a bag has, where offsets are multiples of it."""
    known, shape = constant(module, offsets), sizes_of(rows)
    if known is not None and known.tolist() == [0] and shape is not None:
        return shape[0] if isinstance(shape[0], int) else None
    if known is not None and shape is not None:
        steps = known.diff().unique().tolist()
        even = len(steps) == 1 and int(known[0]) == 0
        return int(steps[0]) if even and shape[0] == int(known[-1]) + int(steps[0]) else None
    if is_call(offsets, aten.arange.start_step) and offsets.args[0] == 0:
        step = argument(offsets, 2, "step", 1)
        return step if isinstance(step, int) else None
    return None


RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    aten.bilinear.default: _bilinear,
    aten.pairwise_distance.default: _pairwise_distance,
    aten.cdist.default: _distances,
    aten.embedding_bag.padding_idx: _bag,
}

"""Einsum: of two operands one matrix product between permutations and reshapes, of one a turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, call, constant, replace

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Product:
    """The labels of an equation by their part in a product; ``out`` in the order asked for.

    Args:
        batch: In both operands and the result.
        rows: In the first operand and the result.
        inner: In both operands, summed.
        columns: In the second operand and the result.
    """

    a: str
    b: str
    out: str
    batch: str
    rows: str
    inner: str
    columns: str

    @property
    def swapped(self) -> Product:
        """The same with the operands the other way round."""
        return replace_fields(self, a=self.b, b=self.a, rows=self.columns, columns=self.rows)


def product_of(equation: str) -> Product | None:
    """Read an equation; None where it is no product of two operands, or has a diagonal."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if "." in equation or len(operands) != 2:
        return None
    a, b = operands
    if not arrow:  # labels that occur once, in order
        out = "".join(sorted(label for label in set(a + b) if (a + b).count(label) == 1))
    if any(len(set(labels)) < len(labels) for labels in (a, b, out)):
        return None
    if any(label not in out for label in set(a) ^ set(b)) or not set(out) <= set(a + b):
        return None
    return Product(
        a=a,
        b=b,
        out=out,
        batch="".join(x for x in a if x in b and x in out),
        rows="".join(x for x in a if x not in b),
        inner="".join(x for x in a if x in b and x not in out),
        columns="".join(x for x in b if x not in a),
    )


def expand_einsum(module: fx.GraphModule, node: fx.Node) -> None:
    """Replace an Einsum whose operands' shapes are known; any other stays."""
    equation, operands = node.args[:2]
    if len(operands) == 1:
        _turn(module, node, str(equation), operands[0])
        return
    if len(operands) > 2:
        _chain(module, node, str(equation), operands)
        return
    found = product_of(str(equation))
    if found is None:
        return
    values = [operand.meta.get("val") for operand in operands]
    if any(not isinstance(value, Tensor) for value in values):
        return
    sizes: dict[str, Any] = {}
    for labels, value in zip((found.a, found.b), values, strict=True):
        for label, size in zip(labels, value.shape, strict=True):
            if str(sizes.get(label, size)) != str(size):
                return  # one of them is repeated
            # A symbol may stand for a number, which the other operand says.
            sizes[label] = size if isinstance(size, int) else sizes.get(label, size)
    if sum(not isinstance(size, int) for size in sizes.values()) > 1:
        return  # a reshape can leave one size open
    _Expansion(module, node, sizes).emit(found, operands)


def _turn(module: fx.GraphModule, node: fx.Node, equation: str, x: fx.Node) -> None:
    """One operand: labels that the result lacks are summed, the others brought in order."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    plain = arrow and "." not in equation and len(set(before)) == len(before)
    if not plain or len(set(after)) < len(after) or not set(after) <= set(before):
        return
    summed = [axis for axis, label in enumerate(before) if label not in after]
    if summed:
        x = call(module, node, aten.sum.dim_IntList, x, summed)
    left = [label for label in before if label in after]
    replace(module, node, aten.permute.default, (x, [left.index(label) for label in after]))


def _chain(module: fx.GraphModule, node: fx.Node, equation: str, operands: Any) -> None:
    """Several operands: the first two become one, with the labels that something still reads."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    a, b, *rest = left.split(",")
    read = set(out).union(*rest)
    joined = "".join(dict.fromkeys(label for label in a + b if label in read))
    if not arrow or "." in equation or product_of(f"{a},{b}->{joined}") is None:
        return
    first = call(module, node, aten.einsum.default, f"{a},{b}->{joined}", list(operands[:2]))
    last = ",".join([joined, *rest]) + f"->{out}"
    args = (last, [first, *operands[2:]])
    whole = replace(module, node, aten.einsum.default, args)
    expand_einsum(module, first)
    expand_einsum(module, whole)


class _Expansion:
    def __init__(self, module: fx.GraphModule, node: fx.Node, sizes: dict[str, Any]) -> None:
        self._module, self._node, self._sizes = module, node, sizes

    def emit(self, product: Product, operands: Sequence[fx.Node]) -> None:
        """Emit the product between what brings operands and result in order."""
        a, b = operands
        if not product.batch and constant(self._module, a) is not None:
            product, a, b = product.swapped, b, a
        weight = None if product.batch else constant(self._module, b)
        y = self._matmul(product, a, b) if weight is None else self._linear(product, a, b, weight)
        whole = product.batch + product.rows + product.columns
        order = [whole.index(label) for label in product.out]
        replace(self._module, self._node, aten.permute.default, (y, order))

    def _matmul(self, product: Product, a: fx.Node, b: fx.Node) -> fx.Node:
        """Return [batch, rows, inner] times [batch, inner, columns]."""
        left = product.batch, product.rows, product.inner
        right = product.batch, product.inner, product.columns
        a = self._merged(self._ordered(a, product.a, "".join(left)), *left)
        b = self._merged(self._ordered(b, product.b, "".join(right)), *right)
        y = self._call(aten.matmul.default, a, b)
        if len(product.rows) == len(product.columns) == 1:
            return y
        whole = product.batch + product.rows + product.columns
        return self._call(aten.reshape.default, y, self._shape(whole))

    def _linear(self, product: Product, a: fx.Node, b: fx.Node, weight: Tensor) -> fx.Node:
        """Return a linear layer of [rows, inner], which is a site like any other."""
        rows, inner, columns = product.rows, product.inner, product.columns
        a = self._ordered(a, product.a, rows + inner)
        if len(inner) != 1:
            a = self._call(aten.reshape.default, a, [*self._shape(rows), self._size(inner)])
        if product.b != columns + inner or weight.dim() != 2:
            turned = weight.permute([product.b.index(label) for label in columns + inner])
            matrix = turned.reshape(self._size(columns), self._size(inner)).contiguous()
            b = add_constant(self._module, self._node, f"{b.target}_transposed", matrix)
            b.meta["val"] = matrix
        y = self._call(aten.linear.default, a, b)
        if len(columns) == 1:
            return y
        return self._call(aten.reshape.default, y, self._shape(rows + columns))

    def _ordered(self, x: fx.Node, labels: str, wanted: str) -> fx.Node:
        if wanted == labels:
            return x
        return self._call(aten.permute.default, x, [labels.index(label) for label in wanted])

    def _merged(self, x: fx.Node, batch: str, *groups: str) -> fx.Node:
        """Make each group one dimension."""
        if all(len(group) == 1 for group in groups):
            return x
        shape = [*self._shape(batch), *map(self._size, groups)]
        return self._call(aten.reshape.default, x, shape)

    def _shape(self, labels: str) -> list[int]:
        return [self._size(label) for label in labels]

    def _size(self, labels: str) -> int:
        """Return the product of sizes; −1 where one of them is free."""
        sizes = [self._sizes[label] for label in labels]
        return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else -1

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return call(self._module, self._node, target, *args)

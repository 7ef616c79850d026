"""Masks as small as they are: broadcasting is left to what reads a tensor.

Transformers build an attention mask [B, 1, T, T] out of a padding mask [B, T]: by indexing it with
ranges, by ``and`` with what is true everywhere, and by copies along broadcast axes. What is left
here is [B, 1, 1, T], which attention broadcasts as it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import argument, constant, is_call, replace
from mpq_compile.passes.remove_identity import end_is_whole

aten = torch.ops.aten
_EXPANDS = (aten.expand.default, aten.expand_as.default)
_ANDS = (aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default)
# Of one tensor that may be expanded; all else are numbers.
_UNARY = frozenset(
    {
        aten.to.dtype,
        aten.where.ScalarOther,
        aten.where.ScalarSelf,
        aten.where.Scalar,
        aten.where.self,
        aten.logical_not.default,
        aten.bitwise_not.default,
        aten.rsub.Scalar,
        aten.mul.Tensor,
        aten.add.Tensor,
        aten.sub.Tensor,
    }
)
_BINARY = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})
_ATTENTION = aten.scaled_dot_product_attention.default
_MASK = 3


@dataclass(frozen=True, kw_only=True)
class SinkExpands:
    """Rewrite ranges as views, drop ``and`` with true, move copies behind what is elementwise."""

    name: str = "sink_expands"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if node.op == "call_function":
                _rewrite(module, node)
        return module


def _rewrite(module: fx.GraphModule, node: fx.Node) -> None:
    if is_call(node, aten.index.Tensor):
        _index(module, node)
    elif is_call(node, *_ANDS):
        _and(module, node)
    elif is_call(node, _ATTENTION):
        _attention(module, node)
    elif node.target in _UNARY and _sink(module, node):
        return
    elif node.target in _BINARY:
        node.args = (*_unexpanded(node), *node.args[2:])


def _value(node: Any) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _shape(node: Any) -> list[Any] | None:
    """Return the sizes of a tensor; symbols compare as text."""
    value = _value(node)
    return None if value is None else [n if isinstance(n, int) else str(n) for n in value.shape]


# Ranges


def _index(module: fx.GraphModule, node: fx.Node) -> None:
    """x[range(B)[:, None, None], range(T)[None, None, :]] is a view of x, [B, 1, T]."""
    source, indices = node.args[:2]
    sizes, result = _shape(source), _shape(node)
    if sizes is None or result is None or len(indices) != len(sizes):
        return
    spread = [_shape(index) or [] for index in indices]
    rank = len(result)
    axes = [_only_axis(shape, rank) for shape in spread]
    ranges = [_range_of(module, index) for index in indices]
    if None in axes or ranges != sizes or axes != sorted(set(axes)):  # type: ignore[type-var]
        return
    view, value = source, _value(source)
    for axis in (axis for axis in range(rank) if axis not in axes):
        assert value is not None
        value = value.unsqueeze(axis)
        with module.graph.inserting_before(node):
            view = module.graph.call_function(aten.unsqueeze.default, (view, axis))
        view.meta["val"] = value
    node.replace_all_uses_with(view)
    module.graph.erase_node(node)


def _only_axis(shape: list[Any], rank: int) -> int | None:
    """Return the axis of the result along which an index runs, if it is one."""
    long = [axis for axis, size in enumerate(shape) if size != 1]
    return rank - len(shape) + long[0] if len(long) == 1 else None


def _range_of(module: fx.GraphModule, node: Any) -> Any:
    """Return n where the elements of ``node`` are 0 … n − 1 in order; else None."""
    fixed = constant(module, node)
    if fixed is not None:
        flat = fixed.reshape(-1)
        return len(flat) if torch.equal(flat, torch.arange(len(flat))) else None
    if is_call(node, aten.unsqueeze.default) or _is_whole_slice(node):
        return _range_of(module, node.args[0])
    if is_call(node, aten.arange.default):
        sizes = _shape(node)
        return sizes[0] if sizes else None
    return None


def _is_whole_slice(node: Any) -> bool:
    if not is_call(node, aten.slice.Tensor) or argument(node, 2, "start") not in (None, 0):
        return False
    end = argument(node, 3, "end")
    return (end is None or end_is_whole(end)) and argument(node, 4, "step", 1) == 1


# Expansions


def _and(module: fx.GraphModule, node: fx.Node) -> None:
    """``true & x`` is x, as wide as the result."""
    for known, other in (node.args[:2], node.args[1::-1]):
        fixed, wide = constant(module, known), _value(node)
        if fixed is None or wide is None or fixed.dtype != torch.bool or not bool(fixed.all()):
            continue
        widths = _widths(other, node)
        if _shape(other) == _shape(node):
            node.replace_all_uses_with(other)
            module.graph.erase_node(node)
            return
        if widths is not None and _value(other) is not None:
            replace(module, node, aten.expand.default, (other, widths))
            return


def _widths(source: Any, wide: fx.Node) -> list[int] | None:
    """Return the sizes for ``expand``, −1 where an axis keeps its own; None where one is free."""
    sizes, result = _shape(source) or [], _shape(wide) or []
    padded = [None] * (len(result) - len(sizes)) + sizes
    widths = [-1 if mine == full else full for mine, full in zip(padded, result, strict=True)]
    return widths if all(isinstance(width, int) for width in widths) else None


def _sink(module: fx.GraphModule, node: fx.Node) -> bool:
    """f(expand(x), numbers) → expand(f(x, numbers))."""
    tensors = [value for value in node.all_input_nodes if _is_wide(module, value)]
    if len(tensors) != 1 or not is_call(tensors[0], *_EXPANDS):
        return False
    wide, source = tensors[0], broadcast_source(tensors[0])
    small_value, value = _value(source), _value(node)
    widths = _widths(source, node)
    if small_value is None or value is None or _shape(wide) != _shape(node) or widths is None:
        return False
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: source if n is wide else n)
    with module.graph.inserting_before(node):
        small = module.graph.call_function(node.target, args, kwargs)
    small.meta["val"] = small_value.to(value.dtype)
    replace(module, node, aten.expand.default, (small, widths))
    return True


def broadcast_source(node: Any) -> Any:
    """Return what an expansion, or one of an expansion, copies."""
    while is_call(node, *_EXPANDS):
        node = node.args[0]
    return node


def _is_wide(module: fx.GraphModule, node: fx.Node) -> bool:
    """Tell whether a tensor has an axis; a single number has none that an expansion matters to."""
    fixed = constant(module, node)
    value = _value(node) if fixed is None else fixed
    return value is None or value.dim() > 0


def _unexpanded(node: fx.Node) -> tuple[Any, Any]:
    """Return the operands of a sum or product that broadcasts by itself."""
    a, b = node.args[:2]
    whole = _shape(node)
    if is_call(b, *_EXPANDS) and whole is not None and _shape(a) == whole:
        return a, broadcast_source(b)
    if is_call(a, *_EXPANDS) and whole is not None and _shape(b) == whole:
        return broadcast_source(a), b
    return a, b


def _attention(module: fx.GraphModule, node: fx.Node) -> None:
    """Give attention the mask as small as it is; one that hides nothing is none."""
    mask = broadcast_source(argument(node, _MASK, "attn_mask"))
    fixed = constant(module, mask)
    if fixed is not None and bool((fixed if fixed.dtype == torch.bool else fixed == 0).all()):
        mask = None
    if len(node.args) > _MASK:
        node.args = (*node.args[:_MASK], mask, *node.args[_MASK + 1 :])
    elif mask is not None:
        node.kwargs = {**node.kwargs, "attn_mask": mask}

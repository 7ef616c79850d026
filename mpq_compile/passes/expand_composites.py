"""Operators that stand for others, in the terms that the rest of the passes know.

What ``torch.export`` leaves whole (addcmul, expand_as), what writes into a slice becomes when
writes are made values (slice_scatter), and constants of one element, which are numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes import composite_layers, pair_layers, recurrent, sampling, windows
from mpq_compile.passes.base import argument, call, constant, is_call, replace
from mpq_compile.passes.remove_identity import end_is_whole

aten = torch.ops.aten
_COMMUTES = (aten.mul.Tensor, aten.add.Tensor)


@dataclass(frozen=True, kw_only=True)
class ExpandComposites:
    """Replace each operator of the table by the ones that it stands for."""

    name: str = "expand_composites"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            rule = _RULES.get(node.target) if node.op == "call_function" else None
            if rule is not None:
                rule(module, node)
        return module


def _sizes(module: fx.GraphModule, node: fx.Node, like: fx.Node) -> list[Any]:
    """Return the sizes of ``like``; one that is free is asked of the tensor when it is there."""
    sizes = like.meta["val"].shape
    return [
        size if isinstance(size, int) else call(module, node, aten.sym_size.int, like, axis)
        for axis, size in enumerate(sizes)
    ]


def _expand_as(module: fx.GraphModule, node: fx.Node) -> None:
    x, like = node.args[:2]
    assert isinstance(like, fx.Node)
    if like.meta.get("val") is not None:
        replace(module, node, aten.expand.default, (x, _sizes(module, node, like)))


def _reshape_as(module: fx.GraphModule, node: fx.Node) -> None:
    x, like = node.args[:2]
    assert isinstance(like, fx.Node)
    if like.meta.get("val") is None:
        return
    sizes = [size if isinstance(size, int) else -1 for size in like.meta["val"].shape]
    # One free size follows from the others, and ``like`` has one reader less.
    if sizes.count(-1) > 1:
        sizes = _sizes(module, node, like)
    replace(module, node, aten.reshape.default, (x, sizes))


def _add_scaled(module: fx.GraphModule, node: fx.Node, inner: Any) -> None:
    """a + value · b · c, or a + value · b / c."""
    a, b, c = node.args[:3]
    term = call(module, node, inner, b, c)
    value = argument(node, 3, "value", 1)
    if value != 1:
        term = call(module, node, aten.mul.Tensor, term, value)
    replace(module, node, aten.add.Tensor, (a, term))


def _concat(module: fx.GraphModule, node: fx.Node) -> None:
    """What is empty adds nothing, as the part of a head that a full rotation leaves."""
    node.target = aten.cat.default  # which has other names
    parts: Any = node.args[0]
    sizes = [getattr(part.meta.get("val"), "shape", ()) for part in parts]
    kept = [part for part, shape in zip(parts, sizes, strict=True) if 0 not in tuple(shape)]
    if len(kept) == 1:
        node.replace_all_uses_with(kept[0])
        module.graph.erase_node(node)
    elif kept:
        node.args = (kept, *node.args[1:])


def _baddbmm(module: fx.GraphModule, node: fx.Node) -> None:
    """β · a + α · b @ c."""
    a, b, c = node.args[:3]
    product = call(module, node, aten.bmm.default, b, c)
    if node.kwargs.get("alpha", 1) != 1:
        product = call(module, node, aten.mul.Tensor, product, node.kwargs["alpha"])
    if node.kwargs.get("beta", 1) != 1:
        a = call(module, node, aten.mul.Tensor, a, node.kwargs["beta"])
    replace(module, node, aten.add.Tensor, (product, a))


def _lerp(module: fx.GraphModule, node: fx.Node) -> None:
    """a + weight · (b − a)."""
    a, b, weight = node.args[:3]
    difference = call(module, node, aten.sub.Tensor, b, a)
    replace(
        module,
        node,
        aten.add.Tensor,
        (a, call(module, node, aten.mul.Tensor, difference, weight)),
    )


def _batch_norm(module: fx.GraphModule, node: fx.Node) -> None:
    """The form with three results, of which inference reads the first."""
    picks = list(node.users)
    if any(pick.args[1] != 0 for pick in picks):
        return
    x, weight, bias, mean, variance, momentum, epsilon = node.args
    args = (x, weight, bias, mean, variance, False, momentum, epsilon, False)
    for pick in picks:
        replace(module, pick, aten.batch_norm.default, args)
    module.graph.erase_node(node)


def _span(node: fx.Node, first: int, size: Any) -> tuple[Any, ...]:
    """Return axis, start, end and step of a slice; in one form where the size is known."""
    names = ("dim", "start", "end", "step")
    axis, start, end, step = (argument(node, first + i, name) for i, name in enumerate(names))
    if isinstance(size, int):
        return (axis or 0, *slice(start, end, step).indices(size))
    return axis or 0, start or 0, end, step or 1


def _slice_scatter(module: fx.GraphModule, node: fx.Node) -> None:
    """base with a part replaced: what reads that part gets it, all else a concatenation."""
    base, part = node.args[:2]
    assert isinstance(base, fx.Node) and isinstance(part, fx.Node)
    if base.op == "placeholder":
        return  # a cache that is written into
    axis: Any = argument(node, 2, "dim", 0)
    size = base.meta["val"].shape[axis] if "val" in base.meta else None
    span = _span(node, 2, size)
    for user in list(node.users):
        if is_call(user, aten.slice.Tensor) and _span(user, 1, size) == span:
            user.replace_all_uses_with(part)
            module.graph.erase_node(user)
    _, first, last, step = span
    if first == 0 and step == 1 and (last is None or end_is_whole(last)):
        node.replace_all_uses_with(part)
    if not node.users or step != 1 or not isinstance(size, int):
        return
    parts = [part]
    if first > 0:
        parts.insert(0, call(module, node, aten.slice.Tensor, base, axis, 0, first))
    if last < size:
        parts.append(call(module, node, aten.slice.Tensor, base, axis, last, size))
    replace(module, node, aten.cat.default, (parts, axis))


def _copy(module: fx.GraphModule, node: fx.Node) -> None:
    """What is written over a tensor, in its shape."""
    x, value = node.args[:2]
    shapes = [getattr(n.meta.get("val"), "shape", None) for n in (x, value)]
    if shapes[0] is not None and shapes[0] == shapes[1]:
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)


def _with_number(module: fx.GraphModule, node: fx.Node) -> None:
    """x · c → x · 3.0 where c is a parameter of one element: a table or a scale, no tensor."""
    pairs = [(node.args[0], node.args[1])]
    if is_call(node, *_COMMUTES):
        pairs.append((node.args[1], node.args[0]))
    for x, value in pairs:
        number = constant(module, value)
        if number is None or number.numel() != 1 or number.dtype != torch.float32:
            continue
        before = x.meta.get("val") if isinstance(x, fx.Node) else None
        if isinstance(before, Tensor) and before.dim() >= number.dim():
            replace(module, node, node.target, (x, float(number)))
            return


def _diff(module: fx.GraphModule, node: fx.Node) -> None:
    """Differences of neighbours along a dimension; truth values differ or do not."""
    x, dim = node.args[0], argument(node, 2, "dim", -1)
    before, after = argument(node, 3, "prepend"), argument(node, 4, "append")
    if argument(node, 1, "n", 1) != 1:
        return
    assert isinstance(x, fx.Node)
    if before is not None or after is not None:
        parts = [part for part in (before, x, after) if part is not None]
        x = call(module, node, aten.cat.default, parts, dim)
    later = call(module, node, aten.slice.Tensor, x, dim, 1)
    sooner = call(module, node, aten.slice.Tensor, x, dim, 0, -1)
    differ = node.meta["val"].dtype == torch.bool
    replace(module, node, aten.ne.Tensor if differ else aten.sub.Tensor, (later, sooner))


_RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    aten.addcmul.default: partial(_add_scaled, inner=aten.mul.Tensor),
    aten.addcdiv.default: partial(_add_scaled, inner=aten.div.Tensor),
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.expand_as.default: _expand_as,
    aten.reshape_as.default: _reshape_as,
    aten.view_as.default: _reshape_as,
    aten.cat.default: _concat,
    aten.concat.default: _concat,
    aten.concatenate.default: _concat,
    aten.baddbmm.default: _baddbmm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.copy.default: _copy,
    aten.diff.default: _diff,
    aten.slice_scatter.default: _slice_scatter,
    aten.add.Tensor: _with_number,
    aten.sub.Tensor: _with_number,
    aten.mul.Tensor: _with_number,
    aten.div.Tensor: _with_number,
    **composite_layers.RULES,
    **pair_layers.RULES,
    **sampling.RULES,
    **windows.RULES,
    **recurrent.RULES,
}

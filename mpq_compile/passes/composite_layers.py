"""Layers that are a few known operators: paddings that repeat values, gates, norms, Einsum.

Moves and concatenations keep codes as they are, so that these paddings are exact on integers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from mpq_compile.passes.base import add_constant, argument, call, constant, replace, sizes_of
from mpq_compile.passes.einsum import expand_einsum

aten = torch.ops.aten

Rule = Callable[[fx.GraphModule, fx.Node], None]


# Paddings


def _pad(module: fx.GraphModule, node: fx.Node) -> None:
    """``torch.nn.functional.pad`` as it is exported: sizes, mode and value."""
    mode = argument(node, 2, "mode", "constant")
    if mode == "constant":
        value = argument(node, 3, "value") or 0
        replace(module, node, aten.constant_pad_nd.default, (*node.args[:2], value))
    else:
        _pad_by_values(module, node, str(mode))


def _pad_by_values(module: fx.GraphModule, node: fx.Node, mode: str) -> None:
    """Join each padded dimension, the last one first, with pieces of itself."""
    x: Any = node.args[0]
    pads: Any = node.args[1]
    shape = sizes_of(x)
    if shape is None or mode not in ("reflect", "circular", "replicate") or min(pads) < 0:
        return  # the operator stays as it is
    sizes = [(-1 - index, shape[-1 - index]) for index in range(len(pads) // 2)]
    if any(not isinstance(size, int) for _, size in sizes):
        return
    for index, (back, size) in enumerate(sizes):
        edge = _Edge(module=module, node=node, axis=len(shape) + back, size=size, mode=mode)
        before, after = pads[2 * index : 2 * index + 2]
        parts = [edge.before(x, before), x, edge.behind(x, after)]
        parts = [part for part in parts if part is not None]
        x = x if len(parts) == 1 else call(module, node, aten.cat.default, parts, edge.axis)
    node.replace_all_uses_with(x)
    module.graph.erase_node(node)


@dataclass(frozen=True, kw_only=True)
class _Edge:
    """What is put before and behind a dimension of ``size`` values."""

    module: fx.GraphModule
    node: fx.Node
    axis: int
    size: int
    mode: str

    def before(self, x: fx.Node, count: int) -> fx.Node | None:
        start = {"reflect": 1, "circular": self.size - count, "replicate": 0}[self.mode]
        return self._piece(x, start, count) if count else None

    def behind(self, x: fx.Node, count: int) -> fx.Node | None:
        last = self.size - 1
        start = {"reflect": last - count, "circular": 0, "replicate": last}[self.mode]
        return self._piece(x, start, count) if count else None

    def _piece(self, x: fx.Node, start: int, count: int) -> fx.Node:
        length = 1 if self.mode == "replicate" else count
        piece = self._call(aten.slice.Tensor, x, self.axis, start, start + length)
        if self.mode == "reflect":
            return self._call(aten.flip.default, piece, [self.axis])
        if length == count:
            return piece
        return self._call(aten.cat.default, [piece] * count, self.axis)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return call(self.module, self.node, target, *args)


# Activations


def _glu(module: fx.GraphModule, node: fx.Node) -> None:
    """One half times the sigmoid of the other."""
    x = node.args[0]
    axis: Any = argument(node, 1, "dim", -1)
    shape = sizes_of(x)
    if shape is None or not isinstance(shape[axis], int):
        return
    half = shape[axis] // 2
    value = call(module, node, aten.slice.Tensor, x, axis, 0, half)
    gate = call(module, node, aten.slice.Tensor, x, axis, half, 2 * half)
    opened = call(module, node, aten.sigmoid.default, gate)
    replace(module, node, aten.mul.Tensor, (value, opened))


def _prelu(module: fx.GraphModule, node: fx.Node) -> None:
    """relu(x) + slope · min(x, 0), with a slope for each channel; with one, a leaky ReLU."""
    x: Any = node.args[0]
    slopes: Any = node.args[1]
    slope, shape = constant(module, slopes), sizes_of(x)
    if slope is None or shape is None:
        return
    if slope.numel() == 1:
        replace(module, node, aten.leaky_relu.default, (x, float(slope)))
        return
    across = slope.reshape(-1, *[1] * (len(shape) - 2))
    weight = add_constant(module, node, f"{slopes.target}_across", across)
    weight.meta["val"] = across
    above = call(module, node, aten.relu.default, x)
    below = call(module, node, aten.clamp.default, x, None, 0.0)
    scaled = call(module, node, aten.mul.Tensor, below, weight)
    replace(module, node, aten.add.Tensor, (above, scaled))


def _rrelu(module: fx.GraphModule, node: fx.Node) -> None:
    """In inference the slope is the middle of its range."""
    lower: Any = argument(node, 1, "lower", 1 / 8)
    upper: Any = argument(node, 2, "upper", 1 / 3)
    if not argument(node, 3, "training", False):
        replace(module, node, aten.leaky_relu.default, (node.args[0], (lower + upper) / 2))


def _celu(module: fx.GraphModule, node: fx.Node) -> None:
    """An ELU whose input below zero is divided by α as well."""
    alpha: Any = argument(node, 1, "alpha", 1.0)
    replace(module, node, aten.elu.default, (node.args[0], alpha, 1.0, 1 / alpha))


def _greater(module: fx.GraphModule, node: fx.Node, compare: Any) -> None:
    """The first where it compares so, else the second."""
    a, b = node.args[:2]
    shapes = [sizes_of(n) for n in (a, b)]
    if None not in shapes and shapes[0] == shapes[1]:
        condition = call(module, node, compare, a, b)
        replace(module, node, aten.where.self, (condition, a, b))


# Reductions


def _only_values(node: fx.Node) -> list[fx.Node] | None:
    """Return the readers of the first of several results; None where another one is read."""
    picks = list(node.users)
    return picks if all(pick.args[1] == 0 for pick in picks) else None


def _greatest(module: fx.GraphModule, node: fx.Node, least: bool) -> None:
    """The greatest over dimensions, along one after the other; of what is negative the least."""
    x: Any = node.args[0]
    axes: Any = argument(node, 1, "dim", ())
    shape = sizes_of(x)
    if shape is None:
        return
    rank = len(shape)
    axes = [axes] if isinstance(axes, int) else axes or range(rank)
    keepdim = argument(node, 2, "keepdim", False)
    if least:
        x = call(module, node, aten.neg.default, x)
    for axis in sorted((axis % rank for axis in axes), reverse=True):
        several = call(module, node, aten.max.dim, x, axis, keepdim)
        x = call(module, node, operator.getitem, several, 0)
    if least:
        x = call(module, node, aten.neg.default, x)
    node.replace_all_uses_with(x)
    module.graph.erase_node(node)


def _log_sum_exp(module: fx.GraphModule, node: fx.Node) -> None:
    """m + log Σ exp(x − m), m the greatest."""
    x: Any = node.args[0]
    axes: Any = node.args[1]
    axes = [axes] if isinstance(axes, int) else list(axes)
    shape = sizes_of(x)
    if shape is None:
        return
    top = x
    for axis in axes:
        several = call(module, node, aten.max.dim, top, axis, True)
        top = call(module, node, operator.getitem, several, 0)
    # Of a row that is hidden as a whole, −inf − m is to be −inf.
    most = torch.finfo(torch.float32).max
    top = call(module, node, aten.clamp.default, top, -most, most)
    powers = call(module, node, aten.exp.default, call(module, node, aten.sub.Tensor, x, top))
    total = call(module, node, aten.sum.dim_IntList, powers, axes, True)
    logs = call(module, node, aten.add.Tensor, call(module, node, aten.log.default, total), top)
    if not argument(node, 2, "keepdim", False):
        logs = call(module, node, aten.squeeze.dims, logs, axes)
    node.replace_all_uses_with(logs)
    module.graph.erase_node(node)


def _least_values(module: fx.GraphModule, node: fx.Node) -> None:
    """The least along a dimension, where nobody asks where it stands."""
    picks = _only_values(node)
    if picks is None or not isinstance(node.args[1], int):
        return
    with module.graph.inserting_before(node):
        args = (node.args[0], [node.args[1]], argument(node, 2, "keepdim", False))
        least = module.graph.call_function(aten.amin.default, args)
    for pick in picks:
        pick.replace_all_uses_with(least)
        module.graph.erase_node(pick)
    module.graph.erase_node(node)
    _greatest(module, least, least=True)


def _adaptive_max_pool(module: fx.GraphModule, node: fx.Node, target: Any) -> None:
    """A max pooling of windows that do not overlap, where the sizes are multiples."""
    picks, shape = _only_values(node), sizes_of(node.args[0])
    asked: Any = node.args[1]
    if picks is None or shape is None:
        return
    sizes = shape[-len(asked) :]
    if any(not isinstance(n, int) or n % out for n, out in zip(sizes, asked, strict=True)):
        return
    window = [n // out for n, out in zip(sizes, asked, strict=True)]
    for pick in picks:
        replace(module, pick, target, (node.args[0], window, window))
    module.graph.erase_node(node)


def _spread(module: fx.GraphModule, node: fx.Node, root: bool) -> None:
    """Variance over dimensions, or its root."""
    x: Any = node.args[0]
    axes: Any = argument(node, 1, "dim")
    unbiased = node.target in (aten.std.dim, aten.var.dim)
    correction: Any = argument(node, 2, "unbiased", True) if unbiased else 1
    correction = node.kwargs.get("correction", correction)
    keepdim = argument(node, 3, "keepdim", False) if unbiased else node.kwargs.get("keepdim", False)
    shape = sizes_of(x)
    if shape is None:
        return
    axes = list(range(len(shape))) if not axes else [axes] if isinstance(axes, int) else list(axes)
    if any(not isinstance(shape[axis], int) for axis in axes):
        return
    count = math.prod(shape[axis] for axis in axes)
    mean = call(module, node, aten.mean.dim, x, axes, True)
    apart = call(module, node, aten.sub.Tensor, x, mean)
    squares = call(module, node, aten.mul.Tensor, apart, apart)
    variance = call(module, node, aten.mean.dim, squares, axes, bool(keepdim))
    correction = 1 if correction is None else float(correction)
    share = count / (count - correction) if count > correction else math.nan
    if not root:
        replace(module, node, aten.mul.Tensor, (variance, share))
        return
    scaled = call(module, node, aten.mul.Tensor, variance, share)
    replace(module, node, aten.sqrt.default, (scaled,))


def _cosine_similarity(module: fx.GraphModule, node: fx.Node) -> None:
    """Σ a·b over the product of both norms, each at least ε."""
    axis, least = argument(node, 2, "dim", 1), argument(node, 3, "eps", 1e-8)
    a, b = node.args[:2]
    products = call(module, node, aten.mul.Tensor, a, b)
    norms = [
        call(
            module,
            node,
            aten.clamp.default,
            call(module, node, aten.linalg_vector_norm.default, x, 2, [axis]),
            least,
        )
        for x in (a, b)
    ]
    total = call(module, node, aten.sum.dim_IntList, products, [axis])
    replace(module, node, aten.div.Tensor, (total, call(module, node, aten.mul.Tensor, *norms)))


# Norms and layouts


def _group_norm(module: fx.GraphModule, node: fx.Node) -> None:
    """Without weight and bias as with ones and zeros, which is how it is lowered."""
    x, groups, weight, bias, *rest = (*node.args, *(None,) * 4)[:6]
    shape = sizes_of(x)
    if shape is None or (weight is not None and bias is not None):
        return
    made = []
    for name, given, value in (("weight", weight, 1.0), ("bias", bias, 0.0)):
        if given is None:
            given = add_constant(
                module, node, f"{node.name}_{name}", torch.full((shape[1],), value)
            )
            given.meta["val"] = torch.empty(shape[1], device="meta")
        made.append(given)
    epsilon = 1e-5 if rest[0] is None else rest[0]
    replace(module, node, aten.group_norm.default, (x, groups, *made, epsilon))


def _instance_norm(module: fx.GraphModule, node: fx.Node) -> None:
    """A group norm of one channel each, or a batch norm where it goes by running statistics."""
    x, weight, bias, mean, variance, by_input, momentum, epsilon, fast = node.args
    shape = sizes_of(x)
    if not by_input:
        running = (x, weight, bias, mean, variance, False, momentum, epsilon, fast)
        replace(module, node, aten.batch_norm.default, running)
    elif shape is not None:
        args = (x, shape[1], weight, bias, epsilon, fast)
        _group_norm(module, replace(module, node, aten.group_norm.default, args))


def _pixel_unshuffle(module: fx.GraphModule, node: fx.Node) -> None:
    """[B, C, H·r, W·r] → [B, C·r², H, W]."""
    x = node.args[0]
    factor: Any = node.args[1]
    shape = sizes_of(x)
    if shape is None or len(shape) != 4 or not all(isinstance(n, int) for n in shape[1:]):
        return
    _, channels, height, width = shape
    height, width = height // factor, width // factor
    split = [-1, channels, height, factor, width, factor]
    parts = call(module, node, aten.reshape.default, x, split)
    turned = call(module, node, aten.permute.default, parts, [0, 1, 3, 5, 2, 4])
    flat = [-1, channels * factor**2, height, width]
    replace(module, node, aten.reshape.default, (turned, flat))


def _channel_shuffle(module: fx.GraphModule, node: fx.Node) -> None:
    """Channels of groups in turns."""
    x = node.args[0]
    groups: Any = node.args[1]
    shape = sizes_of(x)
    if shape is None or not all(isinstance(n, int) for n in shape[1:]):
        return
    _, channels, *rest = shape
    parts = call(module, node, aten.reshape.default, x, [-1, groups, channels // groups, *rest])
    order = [0, 2, 1, *range(3, len(shape) + 1)]
    turned = call(module, node, aten.permute.default, parts, order)
    replace(module, node, aten.reshape.default, (turned, [-1, channels, *rest]))


def _movedim(module: fx.GraphModule, node: fx.Node) -> None:
    """A permutation."""
    shape = sizes_of(node.args[0])
    if shape is None:
        return
    rank = len(shape)
    pairs = [[n] if isinstance(n, int) else list(n) for n in node.args[1:3]]
    source, target = ([axis % rank for axis in axes] for axes in pairs)
    left = iter(axis for axis in range(rank) if axis not in source)
    moved = dict(zip(target, source, strict=True))
    order = [moved[axis] if axis in moved else next(left) for axis in range(rank)]
    replace(module, node, aten.permute.default, (node.args[0], order))


def _repeat(module: fx.GraphModule, node: fx.Node) -> None:
    """Copies side by side along each dimension; as many as the batch has, where that is asked."""
    x: Any = node.args[0]
    counts: Any = node.args[1]
    shape = sizes_of(x)
    if shape is None or any(isinstance(count, int) and count < 1 for count in counts):
        return
    computed = [axis for axis, count in enumerate(counts) if not isinstance(count, int)]
    if len(computed) > 1 or (computed and not all(isinstance(size, int) for size in shape)):
        return
    missing = len(counts) - len(shape)
    for _ in range(missing):
        x = call(module, node, aten.unsqueeze.default, x, 0)
    shape = [1] * missing + shape
    for axis, count in enumerate(counts):
        if axis in computed or count > 1:
            x = _copies(module, node, x, axis, count, shape)
    node.replace_all_uses_with(x)
    module.graph.erase_node(node)


def _tile(module: fx.GraphModule, node: fx.Node) -> None:
    """As ``repeat``, but fewer numbers are of the last dimensions."""
    shape, counts = sizes_of(node.args[0]), list(node.args[1])
    if shape is not None:
        node.args = (node.args[0], [1] * (len(shape) - len(counts)) + counts)
        _repeat(module, node)


def _copies(
    module: fx.GraphModule, node: fx.Node, x: fx.Node, axis: int, count: Any, shape: list[Any]
) -> fx.Node:
    """Repeat one dimension; ``shape`` is brought up to date."""
    size = shape[axis]
    if isinstance(count, int) and size != 1:
        shape[axis] = size * count if isinstance(size, int) else -1
        return call(module, node, aten.cat.default, [x] * count, axis)
    if size != 1:
        x = call(module, node, aten.unsqueeze.default, x, axis)
    wide = [-1] * (len(shape) + (size != 1))
    wide[axis] = count
    x = call(module, node, aten.expand.default, x, wide)
    shape[axis] = count * size if isinstance(count, int) else -1
    return x if size == 1 else call(module, node, aten.reshape.default, x, list(shape))


def _repeat_interleave(module: fx.GraphModule, node: fx.Node) -> None:
    """Each value several times, one after the other."""
    x = node.args[0]
    count: Any = node.args[1]
    axis: Any = argument(node, 2, "dim")
    shape = sizes_of(x)
    if shape is None or axis is None or not isinstance(shape[axis], int):
        return
    axis %= len(shape)
    sizes = [n if isinstance(n, int) else -1 for n in shape]
    if sizes.count(-1) > 1:
        return
    apart = call(module, node, aten.unsqueeze.default, x, axis + 1)
    wide = [-1] * (len(shape) + 1)
    wide[axis + 1] = count
    copies = call(module, node, aten.expand.default, apart, wide)
    sizes[axis] = shape[axis] * count
    replace(module, node, aten.reshape.default, (copies, sizes))


def _narrow(module: fx.GraphModule, node: fx.Node) -> None:
    """A slice, by its start and length."""
    x, axis, start, length = node.args[:4]
    if isinstance(start, int) and isinstance(length, int):
        end = None if start < 0 and start + length == 0 else start + length
        replace(module, node, aten.slice.Tensor, (x, axis, start, end))


def _square(module: fx.GraphModule, node: fx.Node) -> None:
    replace(module, node, aten.pow.Tensor_Scalar, (node.args[0], 2))


RULES: dict[Any, Rule] = {
    aten.pad.default: _pad,
    aten.reflection_pad1d.default: partial(_pad_by_values, mode="reflect"),
    aten.reflection_pad2d.default: partial(_pad_by_values, mode="reflect"),
    aten.reflection_pad3d.default: partial(_pad_by_values, mode="reflect"),
    aten.replication_pad1d.default: partial(_pad_by_values, mode="replicate"),
    aten.replication_pad2d.default: partial(_pad_by_values, mode="replicate"),
    aten.replication_pad3d.default: partial(_pad_by_values, mode="replicate"),
    aten.glu.default: _glu,
    aten.prelu.default: _prelu,
    aten.rrelu.default: _rrelu,
    aten.celu.default: _celu,
    aten.maximum.default: partial(_greater, compare=aten.ge.Tensor),
    aten.minimum.default: partial(_greater, compare=aten.le.Tensor),
    aten.instance_norm.default: _instance_norm,
    aten.group_norm.default: _group_norm,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.einsum.default: expand_einsum,
    aten.amax.default: partial(_greatest, least=False),
    aten.amin.default: partial(_greatest, least=True),
    aten.min.dim: _least_values,
    aten.logsumexp.default: _log_sum_exp,
    aten.adaptive_max_pool1d.default: partial(_adaptive_max_pool, target=aten.max_pool1d.default),
    aten.adaptive_max_pool2d.default: partial(_adaptive_max_pool, target=aten.max_pool2d.default),
    aten.adaptive_max_pool3d.default: partial(_adaptive_max_pool, target=aten.max_pool3d.default),
    aten.std.dim: partial(_spread, root=True),
    aten.std.correction: partial(_spread, root=True),
    aten.var.dim: partial(_spread, root=False),
    aten.var.correction: partial(_spread, root=False),
    aten.cosine_similarity.default: _cosine_similarity,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.movedim.int: _movedim,
    aten.movedim.intlist: _movedim,
    aten.repeat.default: _repeat,
    aten.tile.default: _tile,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.square.default: _square,
    aten.narrow.default: _narrow,
}

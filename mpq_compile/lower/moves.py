"""Data movements that Relax has operators for: permute, slice, pad, nearest resize and others.

Each rule gets the value, the output shape and the ATen arguments after the tensor. Codes move as
bytes, so these serve every format. Where it costs nothing, the channels-last layout is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tvm import relax

from mpq_compile.lower.emit import Emitter, Value

aten = torch.ops.aten
Shape = tuple[int, ...]
_NHWC = (0, 2, 3, 1)


def _axes(value: Value) -> tuple[int, ...]:
    """Logical axes in the order in which they lie in memory."""
    return _NHWC if value.nhwc else tuple(range(len(value.shape)))


def _physical(value: Value) -> Shape:
    return tuple(value.shape[axis] for axis in _axes(value))


def _permute(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], _: Any) -> Value:
    rank = len(value.shape)
    return _permuted(emitter, value, [int(a) % rank for a in args[0]], shape)


def _permuted(emitter: Emitter, value: Value, order: list[int], shape: Shape) -> Value:
    source = value.view.permuted(order)
    if source.is_dense:  # a channels-last image read as rows of channels, or a way back
        return Value(var=source.var, shape=shape, fmt=value.fmt)
    value = emitter.logical(value)
    return emitter.relax_op(value, lambda v: relax.op.permute_dims(v, order), shape, source=source)


def _transpose(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], _: Any) -> Value:
    order = list(range(len(value.shape)))
    first, second = args[0] if len(args) else 0, args[1] if len(args) > 1 else 1
    order[first], order[second] = order[second], order[first]
    return _permuted(emitter, value, order, shape)


def _slice(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], kw: Any) -> Value:
    names = ("dim", "start", "end", "step")
    given = dict(zip(names, args, strict=False)) | kw
    axis = int(given.get("dim", 0)) % len(value.shape)
    size, step = value.shape[axis], int(given.get("step") or 1)
    start = slice(given.get("start"), None).indices(size)[0]
    end = min(start + shape[axis] * step, size)
    return _strided(emitter, value, axis, (start, end, step), shape)


def _strided(
    emitter: Emitter, value: Value, axis: int, span: tuple[int, int, int], shape: Shape
) -> Value:
    place = _axes(value).index(axis)

    def cut(v: Any) -> Any:
        return relax.op.strided_slice(v, [place], [span[0]], [span[1]], [span[2]])

    size = len(range(*span))
    source = value.view.sliced(axis, span[0], span[2], size).reshaped(shape)
    return emitter.relax_op(value, cut, shape, _physical(value), source)


def _select(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], _: Any) -> Value:
    value = emitter.logical(value)
    axis = int(args[0]) % len(value.shape)
    index = int(args[1]) % value.shape[axis]
    return _strided(emitter, value, axis, (index, index + 1, 1), shape)


def _pad(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], kw: Any) -> Value:
    amounts = list(args[0])
    fill = args[1] if len(args) > 1 else kw.get("value", 0)
    pairs = {len(value.shape) - 1 - i: amounts[2 * i : 2 * i + 2] for i in range(len(amounts) // 2)}
    if any(amount < 0 for amount in amounts):
        value, pairs = _cropped(emitter, value, pairs)
    widths = [w for axis in _axes(value) for w in pairs.get(axis, (0, 0))]

    def widen(v: Any) -> Any:
        return relax.op.nn.pad(v, widths, "constant", float(fill))

    return emitter.relax_op(value, widen, shape, _physical(value))


def _cropped(
    emitter: Emitter, value: Value, pairs: dict[int, list[int]]
) -> tuple[Value, dict[int, list[int]]]:
    for axis, (before, after) in pairs.items():
        if min(before, after) >= 0:
            continue
        start, end = max(-before, 0), value.shape[axis] - max(-after, 0)
        shape = tuple(end - start if i == axis else s for i, s in enumerate(value.shape))
        value = _strided(emitter, value, axis, (start, end, 1), shape)
    return value, {axis: [max(b, 0), max(a, 0)] for axis, (b, a) in pairs.items()}


def _nearest(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], kw: Any) -> Value:
    """Nearest resize as two gathers: exactly PyTorch's source indices."""
    value = emitter.channels_last(value)
    indices = _nearest_indices(value.shape[2:], shape[2:], args)

    def gather(v: Any) -> Any:
        for axis, index in zip((1, 2), indices, strict=True):
            v = relax.op.take(v, relax.const(index.astype(np.int32)), axis=axis, mode="clip")
        return v

    return emitter.relax_op(value, gather, shape, _physical(value))


def _nearest_indices(before: Shape, after: Shape, args: Sequence[Any]) -> list[np.ndarray]:
    """Ask PyTorch itself which pixel each output takes: its float rounding is its own."""
    grids = []
    scales = args[1] if len(args) > 1 and args[1] is not None else None
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        line = torch.arange(old, dtype=torch.float32).view(1, 1, old)
        factor = None if scales is None else [float(scales[axis])]
        taken = aten.upsample_nearest1d.vec(line, None if factor else [new], factor)
        grids.append(taken.view(-1).to(torch.int64).numpy())
    return grids


def _expand(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], _: Any) -> Value:
    value = emitter.logical(value)
    seen = (1,) * (len(shape) - len(value.shape)) + value.shape
    target = relax.ShapeExpr(list(shape))
    return emitter.relax_op(value, lambda v: relax.op.broadcast_to(v, target), shape, seen)


def _flip(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], _: Any) -> Value:
    places = [_axes(value).index(int(a) % len(value.shape)) for a in args[0]]

    def turn(v: Any) -> Any:
        for place in places:
            v = relax.op.flip(v, place)
        return v

    return emitter.relax_op(value, turn, shape, _physical(value))


def _roll(emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], kw: Any) -> Value:
    """Each rolled axis as its two parts the other way round."""
    axes = args[1] if len(args) > 1 else kw.get("dims", ())
    if not axes:  # all values in a row
        flat = replace(emitter.logical(value), shape=(value.size,), source=None)
        turned = _roll(emitter, flat, flat.shape, (args[0], (0,)), {})
        return replace(turned, shape=shape)
    steps = []
    for shift, axis in zip(args[0], axes, strict=True):
        place = _axes(value).index(int(axis) % len(shape))
        size = shape[int(axis)]
        steps.append((place, size, (size - int(shift)) % size))

    def turn(v: Any) -> Any:
        for place, size, cut in steps:
            if cut:
                head = relax.op.strided_slice(v, [place], [0], [cut], [1])
                tail = relax.op.strided_slice(v, [place], [cut], [size], [1])
                v = relax.op.concat([tail, head], place)
        return v

    return emitter.relax_op(value, turn, shape, _physical(value))


def _pixel_shuffle(
    emitter: Emitter, value: Value, shape: Shape, args: Sequence[Any], _: Any
) -> Value:
    value, factor = emitter.logical(value), int(args[0])
    batch, _channels, height, width = value.shape
    split = (batch, shape[1], factor, factor, height, width)
    return emitter.relax_op(
        value, lambda v: relax.op.permute_dims(v, [0, 1, 4, 2, 5, 3]), shape, split
    )


def _pieces(emitter: Emitter, value: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    pieces, start = [], 0
    for size in sizes:
        shape = tuple(size if i == axis else s for i, s in enumerate(value.shape))
        pieces.append(_strided(emitter, value, axis, (start, start + size, 1), shape))
        start += size
    return pieces


def _even(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _chunk(emitter: Emitter, value: Value, _: Any, args: Sequence[Any], kw: Any) -> list[Value]:
    axis = int(args[1] if len(args) > 1 else kw.get("dim", 0)) % len(value.shape)
    total = value.shape[axis]
    return _pieces(emitter, value, axis, _even(total, -(-total // int(args[0]))))


def _split(emitter: Emitter, value: Value, _: Any, args: Sequence[Any], kw: Any) -> list[Value]:
    axis = int(args[1] if len(args) > 1 else kw.get("dim", 0)) % len(value.shape)
    sizes = list(args[0]) if isinstance(args[0], (list, tuple)) else None
    return _pieces(emitter, value, axis, sizes or _even(value.shape[axis], int(args[0])))


def _unbind(emitter: Emitter, value: Value, _: Any, args: Sequence[Any], kw: Any) -> list[Value]:
    value = emitter.logical(value)
    axis = int(args[0] if len(args) else kw.get("dim", 0)) % len(value.shape)
    shape = value.shape[:axis] + value.shape[axis + 1 :]
    return [_strided(emitter, value, axis, (i, i + 1, 1), shape) for i in range(value.shape[axis])]


MOVES: dict[Any, Callable[..., Any]] = {
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.constant_pad_nd.default: _pad,
    aten.upsample_nearest2d.vec: _nearest,
    aten.upsample_nearest2d.default: _nearest,
    aten.expand.default: _expand,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.chunk.default: _chunk,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: _unbind,
}

"""Operators that move values: reshapes, slices, splits, padding, nearest resize, concatenation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mpq_compile.integrations.qdq.floats import Rule
from mpq_compile.integrations.qdq.shapes import Sizes
from mpq_compile.integrations.qdq.values import Call, Value
from mpq_compile.integrations.qdq.writer import END, Writer
from mpq_compile.passes import ops
from mpq_compile.passes.kinds import PAD, RESHAPES

aten = torch.ops.aten


def _reshape(writer: Writer, sizes: Sizes, call: Call) -> str:
    return writer.op("Reshape", call.x.name, sizes.reshaped(call.out), into=call.name)


def _permute(writer: Writer, _: Sizes, call: Call) -> str:
    order = [int(axis) % call.x.rank for axis in call.argument(1, "dims")]
    return writer.op("Transpose", call.x.name, into=call.name, perm=order)


def _transpose(writer: Writer, _: Sizes, call: Call) -> str:
    order = list(range(call.x.rank))
    if len(order) > 1:
        a, b = (int(call.argument(i, f"dim{i - 1}", i - 1)) for i in (1, 2))
        order[a], order[b] = order[b], order[a]
    return writer.op("Transpose", call.x.name, into=call.name, perm=order)


def _slice(writer: Writer, _: Sizes, call: Call) -> str:
    start, end = call.argument(2, "start"), call.argument(3, "end")
    span = (int(start or 0), END if end is None else int(end), int(call.argument(4, "step", 1)))
    return writer.sliced(call.x.name, int(call.argument(1, "dim", 0)), *span, into=call.name)


def _select(writer: Writer, _: Sizes, call: Call) -> str:
    axis, index = int(call.args[1]), np.int64(call.args[2])
    return writer.op("Gather", call.x.name, writer.constant(index), into=call.name, axis=axis)


def _expand(writer: Writer, sizes: Sizes, call: Call) -> str:
    target = sizes.expanded(call.x, call.out)
    return writer.op("Expand", call.x.name, target, into=call.name)


def _flip(writer: Writer, _: Sizes, call: Call) -> str:
    axes = [int(axis) for axis in call.args[1]]
    spans = (writer.sizes(*[number] * len(axes)) for number in (-1, -END, -1))
    start, end, step = spans
    return writer.op("Slice", call.x.name, start, end, writer.sizes(*axes), step, into=call.name)


def _roll(writer: Writer, sizes: Sizes, call: Call) -> str:
    """Each axis as its two parts the other way round; without axes, all values in a row.

    Sizes are known: where samples mix, the batch is fixed.
    """
    shifts, axes = call.args[1], [int(axis) % call.x.rank for axis in call.argument(2, "dims", ())]
    if axes:
        x = call.x.name
        for shift, axis in zip(shifts, axes, strict=True):
            x = _turned(writer, x, int(shift) % call.x.shape[axis], axis, call.name)
        return writer.op("Identity", x, into=call.name)
    row = writer.op("Reshape", call.x.name, writer.sizes(-1), into=f"{call.name}_row")
    row = _turned(writer, row, int(shifts[0]) % math.prod(call.x.shape), 0, call.name)
    return writer.op("Reshape", row, sizes.reshaped(call.out), into=call.name)


def _turned(writer: Writer, x: str, shift: int, axis: int, stem: str) -> str:
    if not shift:
        return x
    last = writer.sliced(x, axis, -shift, END, into=f"{stem}_last")
    first = writer.sliced(x, axis, 0, -shift, into=f"{stem}_first")
    return writer.op("Concat", last, first, into=f"{stem}_turned", axis=axis)


def _nearest(writer: Writer, _: Sizes, call: Call) -> str:
    """Resize by the rule of PyTorch: ⌊index · old ÷ new⌋, or index ÷ the factor that is given."""
    given = (
        call.argument(2, "scale_factors") if call.target is aten.upsample_nearest2d.vec else None
    )
    attributes = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return _resized(writer, call, given, attributes)


def _resized(writer: Writer, call: Call, scales: Any, attributes: Mapping[str, Any]) -> str:
    """Write a Resize of height and width, by factors where they are given, else to sizes."""
    if scales:
        wanted = [writer.constant(np.array(scales, np.float32), "scales")]
    else:
        wanted = ["", writer.sizes(*call.out.shape[2:])]
    return writer.op("Resize", call.x.name, "", *wanted, into=call.name, axes=[2, 3], **attributes)


def _bilinear(writer: Writer, _: Sizes, call: Call) -> str:
    mode = "align_corners" if call.argument(2, "align_corners") else "half_pixel"
    attributes = {"mode": "linear", "coordinate_transformation_mode": mode}
    return _resized(writer, call, call.argument(3, "scale_factors"), attributes)


def _pixel_shuffle(writer: Writer, _: Sizes, call: Call) -> str:
    factor = int(call.args[1])
    return writer.op("DepthToSpace", call.x.name, into=call.name, blocksize=factor, mode="CRD")


def _pad(writer: Writer, _: Sizes, call: Call) -> str:
    """Pad with zeros; ATen counts pairs from the last axis on, and negative ones crop."""
    amounts = [int(amount) for amount in call.args[1]]
    axes = [call.x.rank - 1 - index for index in range(len(amounts) // 2)]
    pads = writer.sizes(*amounts[::2], *amounts[1::2])
    zero = writer.scalar(0.0)
    return writer.op("Pad", call.x.name, pads, zero, writer.sizes(*axes), into=call.name)


def _split(writer: Writer, call: Call, axis: int, sizes: list[int]) -> list[str]:
    names = [f"{call.name}_{index}" for index in range(len(sizes))]
    return writer.ops("Split", call.x.name, writer.sizes(*sizes), into=names, axis=axis)


def _chunk(writer: Writer, _: Sizes, call: Call) -> list[str]:
    axis = int(call.argument(2, "dim", 0)) % call.x.rank
    total = call.x.shape[axis]
    return _split(writer, call, axis, _even(total, -(-total // int(call.args[1]))))


def _split_evenly(writer: Writer, _: Sizes, call: Call) -> list[str]:
    axis = int(call.argument(2, "dim", 0)) % call.x.rank
    return _split(writer, call, axis, _even(call.x.shape[axis], int(call.args[1])))


def _split_by_sizes(writer: Writer, _: Sizes, call: Call) -> list[str]:
    axis = int(call.argument(2, "dim", 0)) % call.x.rank
    return _split(writer, call, axis, [int(size) for size in call.args[1]])


def _unbind(writer: Writer, _: Sizes, call: Call) -> list[str]:
    axis = int(call.argument(1, "dim", 0)) % call.x.rank
    parts = _split(writer, call, axis, [1] * call.x.shape[axis])
    return [
        writer.op("Squeeze", part, writer.sizes(axis), into=f"{part}_squeezed") for part in parts
    ]


def _even(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _concat(writer: Writer, _: Sizes, call: Call) -> str:
    axis = int(call.argument(1, "dim", 0))
    return writer.op("Concat", *(part.name for part in call.args[0]), into=call.name, axis=axis)


def _frames_beside(writer: Writer, sizes: Sizes, call: Call) -> str:
    """Frames as an axis of their own, padded, cut and joined, and back."""
    time, taps, stride, dilation, before, behind, groups = (int(n) for n in call.args[1:8])
    _, channels, height, width = call.x.shape
    stem, part = call.name, channels // groups
    split = writer.sizes(-1, time, groups, part, height, width)
    steps = writer.op("Reshape", call.x.name, split, into=f"{stem}_steps")
    if before or behind:
        ends, zero = writer.sizes(before, behind), writer.scalar(0.0)
        steps = writer.op("Pad", steps, ends, zero, writer.sizes(1), into=f"{stem}_padded")
    frames = (time + before + behind - dilation * (taps - 1) - 1) // stride + 1
    cuts = []
    for at in range(0, dilation * taps, dilation):
        end = at + stride * (frames - 1) + 1
        cuts.append(writer.sliced(steps, 1, at, end, stride, into=f"{stem}_from_{at}"))
    joined = writer.op("Concat", *cuts, into=f"{stem}_joined", axis=3)
    return writer.op("Reshape", joined, sizes.reshaped(call.out), into=call.name)


def _write_rows(writer: Writer, sizes: Sizes, call: Call) -> str:
    """Rows of a cache replaced at their positions."""
    cache, rows, position, axis = call.args
    column = [1] * rows.rank
    column[axis] = rows.shape[axis]
    index = writer.op("Reshape", position.name, writer.sizes(*column), into=f"{call.name}_column")
    single = Value(name=index, shape=tuple(column), longer=tuple(column), dtype=position.dtype)
    index = writer.op("Expand", index, sizes.expanded(single, rows), into=f"{call.name}_index")
    return writer.op("ScatterElements", cache.name, index, rows.name, into=call.name, axis=axis)


MOVES: Mapping[Any, Rule] = {
    **dict.fromkeys(RESHAPES, _reshape),
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.expand.default: _expand,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.upsample_nearest2d.vec: _nearest,
    aten.upsample_nearest2d.default: _nearest,
    aten.upsample_bilinear2d.vec: _bilinear,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.chunk.default: _chunk,
    aten.split.Tensor: _split_evenly,
    aten.split_with_sizes.default: _split_by_sizes,
    aten.unbind.int: _unbind,
    aten.cat.default: _concat,
    PAD: _pad,
    ops.write_rows: _write_rows,
    ops.frames_beside: _frames_beside,
}

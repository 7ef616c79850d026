"""Operators that move values and change none: shapes, orders, joins, casts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx.helper import tensor_dtype_to_np_dtype
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator, Result, host_array, integers, number
from mpq_compile.onnx_import.program import DTYPES, NARROW, Node


def reshape(node: Node, x: Tensor, shape: Known) -> Tensor:
    return x.reshape(_sizes(node, x, shape))


def _reshape_known(node: Node, x: Known, shape: Known) -> Known:
    return x.reshape([int(size) for size in _sizes(node, x, shape)])


def _sizes(node: Node, x: Tensor | Known, shape: Known) -> list[Any]:
    """0 keeps a dimension, unless ``allowzero`` gives it its own meaning."""
    sizes = integers(shape)
    if node.get("allowzero", 0):
        return sizes
    kept = [isinstance(size, int) and size == 0 for size in sizes]
    return [x.shape[i] if kept[i] else size for i, size in enumerate(sizes)]


def flatten(node: Node, x: Tensor) -> Tensor:
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    y = x.flatten(axis) if axis < x.dim() else x.unsqueeze(-1)
    return y.flatten(0, axis - 1) if axis > 1 else y


def transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.get("perm", list(range(x.dim()))[::-1]))


def _transpose_known(node: Node, x: Known) -> Known:
    return x.transpose(node.get("perm", list(range(x.ndim))[::-1]))


def squeeze(node: Node, x: Tensor, axes: Known | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(integers(axes)))


def _squeeze_known(node: Node, x: Known, axes: Known | None = None) -> Known:
    return np.squeeze(x, axis=None if axes is None else tuple(integers(axes)))


def unsqueeze(node: Node, x: Tensor, axes: Known) -> Tensor:
    dims = integers(axes)
    rank = x.dim() + len(dims)
    for dim in sorted(d % rank for d in dims):
        x = x.unsqueeze(dim)
    return x


def _unsqueeze_known(node: Node, x: Known, axes: Known) -> Known:
    return np.expand_dims(x, tuple(integers(axes)))


def expand(node: Node, x: Tensor, shape: Known) -> Tensor:
    """Both shapes broadcast: a 1 in the wanted one keeps the dimension."""
    sizes = integers(shape)
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    sizes = [1] * (len(own) - len(sizes)) + sizes
    return x.expand(
        [o if isinstance(s, int) and s == 1 else s for o, s in zip(own, sizes, strict=True)]
    )


def _expand_known(node: Node, x: Known, shape: Known) -> Known | None:
    return host_array(lambda sizes: np.broadcast_to(x, np.broadcast_shapes(x.shape, sizes)), shape)


def tile(node: Node, x: Tensor, repeats: Known) -> Tensor:
    return x.repeat(integers(repeats))


def concat(node: Node, *parts: Tensor) -> Tensor:
    return torch.cat(parts, node.get("axis"))


def _concat_known(node: Node, *parts: Known) -> Known:
    return np.concatenate(parts, node.get("axis"))


def split(node: Node, x: Tensor, sizes: Known | None = None) -> tuple[Tensor, ...]:
    """Equal parts but for the last one, where no sizes are given."""
    axis = node.get("axis", 0)
    if sizes is not None:
        return torch.split(x, integers(sizes), axis)
    each = -(-x.shape[axis] // node.get("num_outputs", len(node.outputs)))
    return torch.split(x, each, axis)


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(
    node: Node, x: Tensor, pads: Known, value: Known | None = None, axes: Known | None = None
) -> Tensor:
    amounts, dims = integers(pads), integers(axes) if axes is not None else range(x.dim())
    half = len(amounts) // 2
    pairs = [(0, 0)] * x.dim()
    for i, dim in enumerate(dims):
        pairs[dim] = (amounts[i], amounts[half + i])
    mode = node.get("mode", "constant")
    if mode == "constant":
        flat = [amount for pair in reversed(pairs) for amount in pair]
        while len(flat) > 2 and flat[-2:] == [0, 0]:
            del flat[-2:]
        return F.pad(x, flat, value=number(value) if value is not None else 0)
    if mode not in _MODES:
        raise node.unsupported(f"mode {mode!r}")
    return _mirrored(x, pairs, mode)


def _mirrored(x: Tensor, pairs: list[tuple[int, int]], mode: str) -> Tensor:
    """Pad one dimension after the other by picking its own values."""
    if any(pairs[:2][i] != (0, 0) for i in range(min(2, len(pairs)))) or x.dim() not in (3, 4, 5):
        for dim, (before, after) in enumerate(pairs):
            if before or after:
                size = int(x.shape[dim])
                places = np.pad(np.arange(size), (before, after), mode)  # type: ignore[call-overload]
                x = x.index_select(dim, torch.from_numpy(places))
        return x
    flat = [amount for pair in reversed(pairs[2:]) for amount in pair]
    return F.pad(x, flat, mode=_MODES[mode])


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    batch, channels, height, width = x.shape
    inner = channels // block**2
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    y = x.reshape(batch, block, block, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, inner, height * block, width * block)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    block = node.get("blocksize")
    batch, channels, height, width = x.shape
    y = x.reshape(batch, channels, height // block, block, width // block, block)
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    y = y.permute(0, 3, 5, 1, 2, 4)
    return y.reshape(batch, channels * block**2, height // block, width // block)


def identity(node: Node, x: Tensor) -> Tensor:
    return x


def dropout(
    node: Node, x: Tensor, ratio: Known | None = None, training: Known | None = None
) -> Result:
    """Nothing at inference; the mask, where it is read, keeps everything."""
    if training is not None and number(training) and (ratio is None or number(ratio)):
        raise node.unsupported("training_mode 1", "export the model in eval mode")
    masked = len(node.outputs) > 1 and node.outputs[1]
    return (x, torch.ones_like(x, dtype=torch.bool)) if masked else x


def cast(node: Node, x: Tensor) -> Tensor:
    return x.to(_target(node))


def _target(node: Node) -> torch.dtype:
    element = node.get("to")
    if element not in DTYPES or element in NARROW:
        raise node.unsupported(f"a cast to type {element}", "use types that PyTorch has")
    return DTYPES[element]


def _cast_known(node: Node, x: Known) -> Known | None:
    if x.dtype == object:
        return x  # sizes are integers of any width
    if _target(node) == torch.bfloat16:
        return None
    # No tensor is made of it: while a network is traced, tensors have no values.
    return x.astype(tensor_dtype_to_np_dtype(node.get("to")))


def _identity_known(node: Node, x: Known) -> Known:
    return x


LAYOUTS = {
    "Reshape": Operator(function=reshape, known=(1,), host=_reshape_known),
    "Flatten": Operator(function=flatten),
    "Transpose": Operator(function=transpose, host=_transpose_known),
    "Squeeze": Operator(function=squeeze, known=(1,), host=_squeeze_known),
    "Unsqueeze": Operator(function=unsqueeze, known=(1,), host=_unsqueeze_known),
    "Expand": Operator(function=expand, known=(1,), host=_expand_known),
    "Tile": Operator(function=tile, known=(1,)),
    "Concat": Operator(function=concat, host=_concat_known),
    "Split": Operator(function=split, known=(1,)),
    "Pad": Operator(function=pad, known=(1, 2, 3)),
    "DepthToSpace": Operator(function=depth_to_space),
    "SpaceToDepth": Operator(function=space_to_depth),
    "Identity": Operator(function=identity, host=_identity_known),
    "Dropout": Operator(function=dropout, known=(1, 2)),
    "Cast": Operator(function=cast, host=_cast_known),
}

"""Resize, where PyTorch's interpolation agrees with it."""

from __future__ import annotations

from math import floor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpq_compile.onnx_import.operator import Known, Operator
from mpq_compile.onnx_import.program import Node

_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
_CENTRES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")


def resize(
    node: Node,
    x: Tensor,
    roi: Known | None = None,
    scales: Known | None = None,
    sizes: Known | None = None,
) -> Tensor:
    """x [N, C, …]: the dimensions after the second change."""
    if node.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise node.unsupported("crops of the input (tf_crop_and_resize)")
    target, factors = _target(node, x, scales, sizes)
    mode = node.get("mode", "nearest")
    if mode == "nearest":
        return _nearest(node, x, target, factors)
    if not _fixed_ends(x, target):
        raise node.unsupported(f"{mode} interpolation of dimensions 0 or 1")
    return _interpolated(node, x, mode, target, factors)


def _target(
    node: Node, x: Tensor, scales: Known | None, sizes: Known | None
) -> tuple[list[int], list[float]]:
    """Return the new size of each dimension, and new over old as the file has it."""
    given = sizes if sizes is not None and sizes.size else scales
    assert given is not None
    axes = node.get("axes") or range(x.dim())
    chosen = {axis % x.dim(): i for i, axis in enumerate(axes)}
    target: list[int] = list(x.shape)
    factors = [1.0] * x.dim()
    for axis, i in chosen.items():
        if given is scales:
            factors[axis] = float(given[i])
            target[axis] = (
                x.shape[axis] if factors[axis] == 1 else floor(x.shape[axis] * factors[axis])
            )
        else:
            target[axis] = given[i]
    if given is scales:
        return target, factors
    _keep_ratio(node, x, target, list(chosen))
    changed = [a for a in chosen if not _same(target[a], x.shape[a])]
    for axis in changed:
        factors[axis] = int(target[axis]) / int(x.shape[axis])
    return [int(t) if a in changed else x.shape[a] for a, t in enumerate(target)], factors


def _same(wanted: object, size: object) -> bool:
    return wanted is size or bool(wanted == size)


def _keep_ratio(node: Node, x: Tensor, target: list[int], axes: list[int]) -> None:
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return
    ratios = [target[a] / x.shape[a] for a in axes]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    for axis in axes:
        target[axis] = floor(ratio * x.shape[axis] + 0.5)


def _fixed_ends(x: Tensor, target: list[int]) -> bool:
    return all(_same(target[i], x.shape[i]) for i in (0, 1))


def _nearest(node: Node, x: Tensor, target: list[int], factors: list[float]) -> Tensor:
    """Pick sources by index; where they are those of ``interpolate``, it is called."""
    changed = [a for a in range(x.dim()) if not _same(target[a], x.shape[a])]
    sources = {a: _sources(node, int(x.shape[a]), int(target[a]), factors[a]) for a in changed}
    regular = all(
        np.array_equal(index, np.arange(len(index)) * x.shape[a] // len(index))
        for a, index in sources.items()
    )
    if regular and x.dim() in _LINEAR and min(changed, default=2) >= 2:
        return F.interpolate(x, size=[int(t) for t in target[2:]], mode="nearest")
    for axis, index in sources.items():
        x = x.index_select(axis, torch.from_numpy(index))
    return x


def _sources(node: Node, old: int, new: int, scale: float) -> np.ndarray:
    """Return the index that each new element is taken from, int64 [new]."""
    place = _coordinates(node, old, new, scale)
    rounding = node.get("nearest_mode", "round_prefer_floor")
    if rounding == "floor":
        index = np.floor(place)
    elif rounding == "ceil":
        index = np.ceil(place)
    elif rounding == "round_prefer_floor":
        index = np.ceil(place - 0.5)
    else:
        index = np.floor(place + 0.5)
    return np.clip(index, 0, old - 1).astype(np.int64)


def _coordinates(node: Node, old: int, new: int, scale: float) -> np.ndarray:
    mode, place = node.get("coordinate_transformation_mode", "half_pixel"), np.arange(new)
    if mode == "asymmetric":
        return place / scale
    if mode == "align_corners":
        return place * ((old - 1) / max(new - 1, 1))
    if mode == "pytorch_half_pixel" and new == 1:
        return np.zeros(1)
    centre = (place + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        centre = centre + old / 2 * (1 - new / (scale * old))
    return centre


def _interpolated(
    node: Node, x: Tensor, mode: str, target: list[int], factors: list[float]
) -> Tensor:
    coordinates = node.get("coordinate_transformation_mode", "half_pixel")
    corners = coordinates == "align_corners"
    if not corners and coordinates not in _CENTRES[:2]:
        raise node.unsupported(f"{mode} interpolation with {coordinates!r} coordinates")
    if coordinates == "pytorch_half_pixel" and 1 in target[2:]:
        raise node.unsupported("pytorch_half_pixel coordinates of a single element")
    if node.get("antialias", 0) or node.get("exclude_outside", 0):
        raise node.unsupported("antialias or exclude_outside")
    method = _LINEAR[x.dim()] if mode == "linear" else "bicubic"
    if mode == "cubic" and (x.dim() != 4 or abs(node.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6):
        raise node.unsupported("cubic interpolation other than of images with a = -0.75")
    exact = all(
        _same(new, old * f)
        for new, old, f in zip(target[2:], x.shape[2:], factors[2:], strict=True)
    )
    if corners and not exact:
        raise node.unsupported("aligned corners and a size that the scale does not give exactly")
    if exact:
        size = [int(t) for t in target[2:]]
        return F.interpolate(x, size=size, mode=method, align_corners=corners)
    # The file's own factor counts, not the ratio of sizes, which were rounded down.
    return F.interpolate(x, scale_factor=factors[2:], mode=method, align_corners=corners)


RESIZE = {"Resize": Operator(function=resize, known=(1, 2, 3))}

"""Reading an image at places that are computed, as spatial transformers and optical flow do.

``grid_sample`` is four look-ups of neighbours (one for the nearest) and a weighted sum of them;
what lies outside counts as zero, or as the border. All of it runs in float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, argument, call, replace, sizes_of

aten = torch.ops.aten
_BILINEAR, _NEAREST = 0, 1
_ZEROS, _BORDER = 0, 1


def _affine_grid(module: fx.GraphModule, node: fx.Node) -> None:
    """θ [B, 2, 3] → places [B, H, W, 2] of the output's pixels in the input, in [−1, 1]."""
    theta = node.args[0]
    whole = sizes_of(node)
    corners = bool(argument(node, 2, "align_corners", False))
    if whole is None or len(whole) != 4 or not all(isinstance(n, int) for n in whole[1:]):
        return
    _, height, width, _ = whole
    y, x = (_line(n, corners) for n in (height, width))
    axes = torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).flatten(1)
    total: Any = call(module, node, aten.slice.Tensor, theta, 2, 2, 3)
    for axis in range(2):
        factor = call(module, node, aten.slice.Tensor, theta, 2, axis, axis + 1)
        line = add_constant(module, node, f"{node.name}_axis_{axis}", axes[axis][None, None])
        line.meta["val"] = axes[axis][None, None]
        product = call(module, node, aten.mul.Tensor, factor, line)
        total = call(module, node, aten.add.Tensor, product, total)
    turned = call(module, node, aten.transpose.int, total, 1, 2)
    replace(module, node, aten.reshape.default, (turned, [-1, height, width, 2]))


def _line(count: int, corners: bool) -> Tensor:
    """Return the places of pixels along an axis: their centres, or up to the corners."""
    if count == 1:
        return torch.zeros(1)
    line = torch.linspace(-1.0, 1.0, count)
    return line if corners else line * (count - 1) / count


class _Sampling:
    """One ``grid_sample``, emitted before its node."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, sizes: list[int]) -> None:
        self.module, self.node = module, node
        self.channels, self.height, self.width, self.rows, self.columns = sizes
        self.border = node.args[3] == _BORDER
        self.corners = bool(node.args[4])
        flat = [-1, self.channels, self.height * self.width]
        self.image = self.emit(aten.reshape.default, node.args[0], flat)

    def emit(self, target: Any, *args: Any) -> fx.Node:
        return call(self.module, self.node, target, *args)

    def places(self, axis: int, size: int) -> fx.Node:
        """Return where along an axis pixels are read, [B, P] in pixels."""
        grid = self.emit(aten.select.int, self.node.args[1], 3, axis)
        flat = self.emit(aten.reshape.default, grid, [-1, self.rows * self.columns])
        scale = (size - 1) / 2 if self.corners else size / 2
        places = self.emit(aten.mul.Tensor, flat, scale)
        places = self.emit(aten.add.Tensor, places, (size - 1) / 2)
        return self.emit(aten.clamp.default, places, 0.0, size - 1.0) if self.border else places

    def inside(self, places: fx.Node, size: int) -> fx.Node:
        """Return 1 for places within the image, 0 for others."""
        near = self.emit(aten.clamp.default, places, 0.0, size - 1.0)
        return self.emit(aten.to.dtype, self.emit(aten.eq.Tensor, near, places), torch.float32)

    def read(self, y: fx.Node, x: fx.Node, weight: fx.Node | None) -> fx.Node:
        """Return the pixels at whole places, weighed: [B, C, P]."""
        if not self.border:
            known = self.emit(
                aten.mul.Tensor, self.inside(y, self.height), self.inside(x, self.width)
            )
            weight = known if weight is None else self.emit(aten.mul.Tensor, weight, known)
        rows = self.emit(aten.clamp.default, y, 0.0, self.height - 1.0)
        columns = self.emit(aten.clamp.default, x, 0.0, self.width - 1.0)
        number = self.emit(aten.add.Tensor, self.emit(aten.mul.Tensor, rows, self.width), columns)
        index = self.emit(aten.unsqueeze.default, self.emit(aten.to.dtype, number, torch.int64), 1)
        wide = self.emit(aten.expand.default, index, [-1, self.channels, -1])
        pixels = self.emit(aten.gather.default, self.image, 2, wide)
        if weight is None:
            return pixels
        return self.emit(aten.mul.Tensor, pixels, self.emit(aten.unsqueeze.default, weight, 1))

    def bilinear(self) -> fx.Node:
        y, x = self.places(1, self.height), self.places(0, self.width)
        tops, lefts = self.emit(aten.floor.default, y), self.emit(aten.floor.default, x)
        down, right = self.emit(aten.sub.Tensor, y, tops), self.emit(aten.sub.Tensor, x, lefts)
        up, left = (self.emit(aten.rsub.Scalar, share, 1.0) for share in (down, right))
        bottoms, rights = (self.emit(aten.add.Tensor, low, 1.0) for low in (tops, lefts))
        total: fx.Node | None = None
        for row, tall in ((tops, up), (bottoms, down)):
            for column, wide in ((lefts, left), (rights, right)):
                weight = self.emit(aten.mul.Tensor, tall, wide)
                read = self.read(row, column, weight)
                total = read if total is None else self.emit(aten.add.Tensor, total, read)
        assert total is not None
        return total

    def nearest(self) -> fx.Node:
        y, x = self.places(1, self.height), self.places(0, self.width)
        return self.read(self.emit(aten.round.default, y), self.emit(aten.round.default, x), None)


def _grid_sample(module: fx.GraphModule, node: fx.Node) -> None:
    image, grid = sizes_of(node.args[0]), sizes_of(node.args[1])
    mode, padding = node.args[2:4]
    if image is None or grid is None or len(image) != 4:
        return
    sizes = [*image[1:], *grid[1:3]]
    known = all(isinstance(size, int) for size in sizes)
    if not known or mode not in (_BILINEAR, _NEAREST) or padding not in (_ZEROS, _BORDER):
        return
    sampling = _Sampling(module, node, sizes)
    pixels = sampling.bilinear() if mode == _BILINEAR else sampling.nearest()
    replace(module, node, aten.reshape.default, (pixels, [-1, image[1], *grid[1:3]]))


RULES: dict[Any, Callable[[fx.GraphModule, fx.Node], None]] = {
    aten.affine_grid_generator.default: _affine_grid,
    aten.grid_sampler.default: _grid_sample,
    aten.grid_sampler_2d.default: _grid_sample,
}

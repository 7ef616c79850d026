"""How a volume and its frames are made of each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.passes.base import add_constant, call, constant
from mpq_compile.passes.lifting import Lifting

aten = torch.ops.aten
TIME = 2  # the axis that joins the batch


class VolumeLift(Lifting):
    """A volume's twin are its frames."""

    rank = 5

    def emit(self, target: Any, *args: Any) -> fx.Node:
        """Emit a call where the rewrite is."""
        return call(self.module, self.here, target, *args)

    def size(self, node: Any) -> tuple[int, int, int, int] | None:
        """Return C, T, H and W of a volume; None where one is free."""
        value = self.value(node)
        sizes = list(value.shape[1:]) if isinstance(value, Tensor) else []
        known = len(sizes) == 4 and all(isinstance(size, int) for size in sizes)
        return tuple(sizes) if known else None  # type: ignore[return-value]

    def twin(self, node: Any) -> fx.Node:
        if node in self.twins:
            return self.twins[node]
        value = constant(self.module, node)
        if value is not None:
            name = f"{node.target}_lifted"
            return add_constant(self.module, self.here, name, _without_time(value))
        sizes = self.size(node)
        assert sizes is not None  # the rules ask first
        return self.frames(self.emit(aten.permute.default, node, [0, 2, 1, 3, 4]), sizes)

    def frames(self, steps: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B, T, C, H, W] → [B·T, C, H, W]."""
        channels, _, height, width = sizes
        return self.emit(aten.reshape.default, steps, [-1, channels, height, width])

    def steps(self, frames: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B·T, C, H, W] → [B, T, C, H, W]."""
        channels, time, height, width = sizes
        return self.emit(aten.reshape.default, frames, [-1, time, channels, height, width])

    def lines(self, frames: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B·T, C, H, W] → [B, C, T, H·W]."""
        channels, time, height, width = sizes
        flat = self.emit(aten.reshape.default, frames, [-1, time, channels, height * width])
        return self.emit(aten.permute.default, flat, [0, 2, 1, 3])

    def frames_of_lines(self, lines: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """[B, C, T, H·W] → [B·T, C, H, W]."""
        turned = self.emit(aten.permute.default, lines, [0, 2, 1, 3])
        return self.frames(turned, sizes)

    def lifted_value(self, value: Tensor) -> Tensor:
        return value.transpose(1, 2).flatten(0, 1)

    def lowered(self, twin: fx.Node, value: Tensor) -> fx.Node:
        _, channels, time, height, width = value.shape
        steps = self.steps(twin, (channels, time, height, width))
        return self.emit(aten.permute.default, steps, [0, 2, 1, 3, 4])

    def fits(self, source: fx.Node, result: fx.Node) -> bool:
        """Constants have one value for all of time; volumes that and the batch of the result."""
        value, whole = self.value(source), self.value(result)
        if not isinstance(value, Tensor) or whole is None or value.dim() == 0:
            return False
        if constant(self.module, source) is not None:
            one_for_all = value.dim() < 5 or value.shape[0] == 1
            return one_for_all and (value.dim() < 3 or value.shape[-3] == 1)
        known = self.size(source) is not None and value.shape[0] == whole.shape[0]
        return known and value.shape[TIME] in (1, whole.shape[TIME])

    def operand(self, source: fx.Node, result: fx.Node) -> fx.Node:
        """Frames for each frame of the result: one may stand for all of time."""
        twin, sizes, whole = self.twin(source), self.size(source), self.size(result)
        if constant(self.module, source) is not None or sizes is None or whole is None:
            return twin
        channels, time, height, width = sizes
        if time == whole[1]:
            return twin
        steps = self.steps(twin, sizes)
        repeated = self.emit(aten.expand.default, steps, [-1, whole[1], channels, height, width])
        return self.frames(repeated, sizes)

    def constant(self, like: fx.Node, value: Tensor) -> fx.Node:
        """Register what was made of a weight or bias."""
        return add_constant(self.module, self.here, f"{like.target}_lifted", value)


def _without_time(value: Tensor) -> Tensor:
    """[…, 1, H, W] → […, H, W]."""
    return value.squeeze(-3) if value.dim() > 2 else value


def three(value: Any) -> list[int]:
    """One number, or one for each of time, height and width."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 3 if len(values) == 1 else values

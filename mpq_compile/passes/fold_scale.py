"""Products and sums with one constant by channel move into the layer that they follow.

Layer scale (γ ⊙ f(x)), learned offsets: y = γ ⊙ (W x + b) + β is a layer with weight γ W and bias
γ b + β, folded in float64 and rounded once. Behind anything else, an image gets an affine by
channel, which integers compute exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import add_constant, constant, is_call, only_user, replace
from mpq_compile.passes.fold_batchnorm import NormStatistics, scale_outputs

aten = torch.ops.aten
_UNBOUNDED = (-ops.INF, ops.INF)


@dataclass(frozen=True, kw_only=True)
class FoldScale:
    """Fold each such product and sum.

    Args:
        statistics: What is known of sites' outputs, by their weight's name; kept up to date.
    """

    statistics: dict[str, NormStatistics] = field(default_factory=dict, repr=False)
    name: str = "fold_scale"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, ops.multiply, ops.add) and tuple(node.args[2:]) == _UNBOUNDED:
                self._fold(module, node)
        return module

    def _fold(self, module: fx.GraphModule, node: fx.Node) -> None:
        for x, other in (node.args[:2], node.args[1::-1]):
            value = constant(module, other)
            if value is None or not isinstance(x, fx.Node) or constant(module, x) is not None:
                continue
            for axis in (1, -1):
                channels = _by_channel(x, value, axis)
                if channels is not None and self._folded(module, node, x, axis, channels):
                    return

    def _folded(
        self, module: fx.GraphModule, node: fx.Node, x: fx.Node, axis: int, channels: Tensor
    ) -> bool:
        one, zero = torch.ones_like(channels), torch.zeros_like(channels)
        scale, bias = (channels, zero) if is_call(node, ops.multiply) else (one, channels)
        site = _site_before(node, x, axis)
        if site is not None:
            self._into(module, site, scale, bias)
            node.replace_all_uses_with(x)
            module.graph.erase_node(node)
            return True
        if axis != 1 or x.meta["val"].dim() != 4:
            return False
        names = (f"{node.name}_scale", f"{node.name}_bias")
        values = [
            add_constant(module, node, name, value.float())
            for name, value in zip(names, (scale, bias), strict=True)
        ]
        replace(module, node, ops.channel_affine, (x, *values, *_UNBOUNDED))
        return True

    def _into(self, module: fx.GraphModule, site: fx.Node, scale: Tensor, bias: Tensor) -> None:
        known = self.statistics.get(str(site.args[1].target))
        scale_outputs(module, site, scale, bias)
        if known is not None:
            self.statistics[str(site.args[1].target)] = NormStatistics(
                mean=known.mean * scale + bias, std=known.std * scale.abs()
            )


def _by_channel(x: fx.Node, value: Tensor, axis: int) -> Tensor | None:
    """Return float64 [C] where ``value`` is constant along all axes of ``x`` but ``axis``."""
    shape = getattr(x.meta.get("val"), "shape", None)
    if shape is None or len(shape) < 2 or value.dim() > len(shape):
        return None
    spread = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    axis %= len(shape)
    fits = spread[axis] == shape[axis] and value.numel() == spread[axis] > 1
    return value.double().reshape(-1) if fits else None


def _site_before(node: fx.Node, x: fx.Node, axis: int) -> fx.Node | None:
    """Return the site whose output channels lie along ``axis`` of ``x`` and go nowhere else."""
    axis %= x.meta["val"].dim()
    user = node
    while is_call(x, aten.permute.default) and only_user(x) is user:
        order = x.args[1]
        user, x, axis = x, x.args[0], order[axis] % len(order)
    if only_user(x) is not user or not is_call(x, *ops.SITE_OPS):
        return None
    value = x.meta.get("val")
    last = value.dim() - 1 if value is not None else None
    return x if axis == (last if is_call(x, ops.site_linear) else 1) else None

"""Fold batch norms into the convolution or linear before them; the rest become affines."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from mpq_compile.errors import CaptureError
from mpq_compile.passes import ops
from mpq_compile.passes.base import add_constant, argument, constant, is_call, only_user, replace

aten = torch.ops.aten
_ROWS = (aten.flatten.using_ints, aten.reshape.default)


@dataclass(frozen=True, kw_only=True)
class NormStatistics:
    """What a batch norm knows of its outputs, float64 [N]: mean β and standard deviation |γ|."""

    mean: Tensor
    std: Tensor

    def divided(self, factor: Tensor) -> NormStatistics:
        """Return the statistics of outputs that are divided by positive factors [N]."""
        return NormStatistics(mean=self.mean / factor, std=self.std / factor)

    def lowered(self, amount: Tensor) -> NormStatistics:
        """Return the statistics of outputs that ``amount`` [N] is subtracted from."""
        return NormStatistics(mean=self.mean - amount, std=self.std)


@dataclass(frozen=True, kw_only=True)
class FoldBatchnorm:
    """y = γ (x − μ) / √(σ² + ε) + β, folded in float64 and rounded once.

    A batch norm whose input is used elsewhere, or is no site, becomes ``channel_affine``.

    Args:
        statistics: Filled: what is known of the outputs of a folded site, by its weight's name.
    """

    statistics: dict[str, NormStatistics] = field(default_factory=dict, repr=False)
    name: str = "fold_batchnorm"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, aten.batch_norm.default):
                self._fold(module, node)
        return module

    def _fold(self, module: fx.GraphModule, node: fx.Node) -> None:
        scale, bias = _affine(module, node)
        site = _site_before(node)
        if site is not None:
            found = _statistics(module, node, scale)
            scale_outputs(module, site, scale, bias)
            self.statistics[str(site.args[1].target)] = found
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
            return
        names = [f"{node.name}_scale", f"{node.name}_bias"]
        values = [add_constant(module, node, n, v.float()) for n, v in zip(names, (scale, bias))]  # noqa: B905
        args = (node.args[0], *values, -ops.INF, ops.INF)
        replace(module, node, ops.channel_affine, args)


def _statistics(module: fx.GraphModule, node: fx.Node, scale: Tensor) -> NormStatistics:
    """Inputs of mean μ and variance σ² have mean β and deviation |γ| √(σ² / (σ² + ε)) behind it."""
    beta, variance = constant(module, argument(node, 2, "bias")), constant(module, node.args[4])
    assert variance is not None
    mean = torch.zeros_like(scale) if beta is None else beta.double()
    return NormStatistics(mean=mean, std=scale.abs() * variance.double().sqrt())


def _site_before(node: fx.Node) -> fx.Node | None:
    """Return the site whose outputs, and nothing else, a batch norm normalises."""
    x, user = node.args[0], node
    # Rows of several axes laid out as one keep their features last: LeViT's linear layers.
    while is_call(x, *_ROWS) and only_user(x) is user and _keeps_features(x):
        user, x = x, x.args[0]
    if not is_call(x, *ops.SITE_OPS) or only_user(x) is not user:
        return None
    if user is not node:
        return x if is_call(x, ops.site_linear) else None
    # A linear over [B, T, K] has its features last, a batch norm in dimension 1.
    value = x.meta.get("val")
    return x if is_call(x, ops.site_conv2d) or value is None or value.dim() == 2 else None


def _keeps_features(node: fx.Node) -> bool:
    """Tell whether a reshape gives [rows, features] of a tensor with the same features last."""
    values = [n.meta.get("val") for n in (node, node.args[0])]
    if any(value is None for value in values):
        return False
    after, before = (value.shape for value in values)
    return len(after) == 2 and isinstance(after[1], int) and after[1] == before[-1]


def _affine(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    gamma, beta = (constant(module, argument(node, i, n)) for i, n in ((1, "weight"), (2, "bias")))
    mean, variance = (constant(module, node.args[i]) for i in (3, 4))
    if mean is None or variance is None or argument(node, 5, "training", False):
        raise CaptureError(
            "a batch norm without running statistics cannot be deployed",
            where=node.name,
            expected="eval mode and track_running_stats=True",
            remedy="call model.eval(), or use another normalisation",
        )
    epsilon = argument(node, 7, "eps", 1e-5)
    scale = (variance.double() + epsilon).rsqrt()  # type: ignore[operator]
    scale = scale if gamma is None else scale * gamma.double()
    bias = -mean.double() * scale
    return scale, bias if beta is None else bias + beta.double()


def scale_outputs(module: fx.GraphModule, site: fx.Node, scale: Tensor, bias: Tensor) -> None:
    """Make a site compute ``scale ⊙ y + bias`` of its outputs y; float64 [N] both."""
    weight_node, bias_node = site.args[1], site.args[2]
    weight, old = constant(module, weight_node), constant(module, bias_node)
    assert weight is not None
    shape = (-1,) + (1,) * (weight.dim() - 1)
    folded = (weight.double() * scale.view(shape)).float()
    shifted = bias if old is None else bias + old.double() * scale
    path = str(weight_node.target)
    owner = path.rpartition(".")[0]
    new_weight = add_constant(module, site, f"{path}_folded", folded)
    new_bias = add_constant(
        module, site, f"{owner}.bias_folded" if owner else "bias_folded", shifted.float()
    )
    site.args = (site.args[0], new_weight, new_bias, *site.args[3:])

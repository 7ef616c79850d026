"""add(a, b, alpha=k), sub and rsub → plain sums of an explicit product.

Importers and tables know the two-argument forms; a factor that hides in a keyword is easily lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes.base import argument, is_call, replace

aten = torch.ops.aten
_SUMS = (aten.add.Tensor, aten.sub.Tensor)
_REVERSED = (aten.rsub.Tensor, aten.rsub.Scalar)


@dataclass(frozen=True, kw_only=True)
class ExpandScaledSums:
    """Make every factor of a sum a multiplication; rsub(a, b) = b − a becomes sub(b, a)."""

    name: str = "expand_scaled_sums"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, *_SUMS):
                _expand(module, node, node.target, node.args[0], node.args[1])
            elif is_call(node, *_REVERSED):
                _expand_reversed(module, node)
        return module


def _expand(module: fx.GraphModule, node: fx.Node, target: Any, a: Any, b: Any) -> None:
    alpha = argument(node, 2, "alpha", 1)
    if alpha != 1:
        replace(module, node, target, (a, _scaled(module, node, b, alpha)))


def _expand_reversed(module: fx.GraphModule, node: fx.Node) -> None:
    a, b = node.args[:2]
    alpha: Any = argument(node, 2, "alpha", 1)
    if isinstance(b, fx.Node):
        scaled = a if alpha == 1 else _scaled(module, node, a, alpha)
        replace(module, node, aten.sub.Tensor, (b, scaled))
        return
    # A number minus a tensor: the tensor comes first in every form that importers know.
    replace(module, node, aten.add.Tensor, (_scaled(module, node, a, -alpha), b))


def _scaled(module: fx.GraphModule, node: fx.Node, value: Any, alpha: Any) -> Any:
    if not isinstance(value, fx.Node):
        return value * alpha
    with module.graph.inserting_before(node):
        product = module.graph.call_function(aten.mul.Tensor, (value, alpha))
    source = value.meta.get("val")
    if source is not None:
        product.meta["val"] = source
    return product

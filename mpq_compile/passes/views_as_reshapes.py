"""Views become reshapes: how a tensor lies in memory is not what it was when it was traced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from mpq_compile.passes.base import is_call, replace

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True, kw_only=True)
class ViewsAsReshapes:
    """Replace each view by a reshape, which asks nothing of the memory."""

    name: str = "views_as_reshapes"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, *_VIEWS):
                replace(module, node, aten.reshape.default, tuple(node.args[:2]))
        return module

"""Dropout that ``forward`` would do in eval mode, too: a deployed network is no draw."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

_DROPOUTS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)


def switch_off_dropout(graph: fx.Graph) -> list[fx.Node]:
    """Let every dropout return its input; return those that did not."""
    active = [n for n in graph.nodes if n.target in _DROPOUTS and n.args[2:] == (True,)]
    for node in active:
        node.args = (*node.args[:2], False)
    return active

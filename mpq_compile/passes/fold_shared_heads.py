"""Attention whose heads share keys and values (grouped queries) in a form that copies neither.

For one query row the heads that share a key become rows of one head: [B, H, 1, D] is
[B, H/n, n, D] in memory, and keys are read once for all of them. Longer queries with
``enable_gqa`` repeat keys and values explicitly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mpq_compile.passes.base import argument, is_call, replace
from mpq_compile.passes.fuse_epilogues import Shapes

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True, kw_only=True)
class FoldSharedHeads:
    """Rewrite each attention of four axes that shares heads.

    Args:
        shapes: Shape and dtype by node name.
    """

    shapes: Shapes
    name: str = "fold_shared_heads"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        for node in list(module.graph.nodes):
            if is_call(node, SDPA) and len(self._shape(node.args[0])) == 4:
                self._rewrite(module, node)
        return module

    def _shape(self, node: Any) -> tuple[int, ...]:
        return self.shapes.get(getattr(node, "name", ""), ((),))[0]

    def _rewrite(self, module: fx.GraphModule, node: fx.Node) -> None:
        heads, queries = self._shape(node.args[0])[1:3]
        grouped = bool(node.kwargs.get("enable_gqa", False))
        shared = [value if grouped else self._unrepeated(value) for value in node.args[1:3]]
        counts = {self._shape(value)[1] for value in shared if value is not None}
        if None in shared or len(counts) != 1 or counts == {heads}:
            return
        (keys,) = counts
        if queries == 1 and self._fits(node):
            self._fold(module, node, shared, keys, heads // keys)
        elif grouped:
            _repeat(module, node, shared, heads // keys)

    def _unrepeated(self, value: Any) -> fx.Node | None:
        """Return x where ``value`` is x with each head repeated: unsqueeze, expand, reshape."""
        if not is_call(value, aten.reshape.default):
            return None
        expanded = value.args[0]
        if not is_call(expanded, aten.expand.default):
            return None
        single = expanded.args[0]
        if not is_call(single, aten.unsqueeze.default):
            return None
        batch, heads, keys, columns = self._shape(value)
        source, wide = self._shape(single.args[0]), self._shape(expanded)
        repeated = len(source) == 4 and heads % source[1] == 0
        fits = repeated and wide == (batch, source[1], heads // source[1], keys, columns)
        return single.args[0] if fits and self._shape(single)[2] == 1 else None

    def _fits(self, node: fx.Node) -> bool:
        """Tell whether mask and flags mean the same for rows of a head as for heads."""
        if argument(node, 5, "is_causal", False):
            return False
        mask = self._shape(argument(node, 3, "attn_mask"))
        return not mask or all(size == 1 for size in mask[-3:-1])

    def _fold(
        self, module: fx.GraphModule, node: fx.Node, shared: Any, heads: int, rows: int
    ) -> None:
        depth, columns = self._shape(node.args[0])[-1], self._shape(node.args[2])[-1]
        with module.graph.inserting_before(node):
            q = module.graph.call_function(
                aten.reshape.default, (node.args[0], [-1, heads, rows, depth])
            )
            attended = module.graph.call_function(SDPA, (q, *shared, *node.args[3:]))
        attended.kwargs = {k: v for k, v in node.kwargs.items() if k != "enable_gqa"}
        replace(module, node, aten.reshape.default, (attended, [-1, heads * rows, 1, columns]))


def _repeat(module: fx.GraphModule, node: fx.Node, shared: Any, times: int) -> None:
    with module.graph.inserting_before(node):
        wide = [_repeated(module.graph, value, times) for value in shared]
    node.args = (node.args[0], *wide, *node.args[3:])
    node.kwargs = {k: v for k, v in node.kwargs.items() if k != "enable_gqa"}


def _repeated(graph: fx.Graph, value: fx.Node, times: int) -> fx.Node:
    """[B, G, S, D] → [B, G · times, S, D]."""
    single = graph.call_function(aten.unsqueeze.default, (value, 2))
    wide = graph.call_function(aten.expand.default, (single, [-1, -1, times, -1, -1]))
    return graph.call_function(aten.flatten.using_ints, (wide, 1, 2))

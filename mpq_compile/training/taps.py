"""Sites' outputs beside the network's: what a student is compared with its teacher at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True, kw_only=True)
class AppendTaps:
    """Let a graph return the values of some nodes after its outputs."""

    taps: Sequence[str]
    name: str = "append_taps"

    def __call__(self, module: fx.GraphModule) -> fx.GraphModule:
        nodes = {node.name: node for node in module.graph.nodes}
        output = nodes["output"]
        output.args = ((*output.args[0], *(nodes[name] for name in self.taps)),)
        return module

"""How much the network's output minds an error in each element of a tensor inside it.

    F = E_x E_{y ~ p(·|x)} (∂ log p_y / ∂z)²

the diagonal of the Fisher information of z, by which BRECQ (arXiv 2102.05426) weighs the error of
a block's output. Labels are drawn from the float network, so none are needed; and F is a mean over
samples, where the published form keeps a noisy one for each [derived].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.fisher import drawn
from mpq_compile.sensitivity.heads import find_heads
from mpq_compile.sensitivity.slices import cut, value_bytes

_SAMPLES, _LABELS, _MEMORY_MB = 256, 2, 1024.0


def diagonal_fisher(
    graph: QuantizedGraph,
    batches: Sequence[Batch],
    names: Sequence[str],
    seed: int = 0,
    samples: int = _SAMPLES,
) -> dict[str, Tensor]:
    """Return F of each node, float32, over its mean: the shape of the node without its batch.

    A node that the output does not depend on, or whose batch is not its first axis, gets ones.

    Args:
        graph: The quantized graph; it is left switched to float.
        batches: Calibration data; the first ``samples`` samples are used.
        names: Nodes of the float network.
        seed: Of the labels.
        samples: Samples that F is a mean of.

    Raises:
        CalibrationError: No output tells how far a network is from float.
    """
    network = graph.network
    slices = cut(batches, network, samples, 2 * value_bytes(network), _MEMORY_MB)
    heads = find_heads(graph, slices)
    totals: dict[str, Tensor] = {}
    for part in track(slices, "fisher"):
        recorder = _Leaves(network, names)
        with torch.enable_grad():
            outputs = recorder.run(*part.batch.inputs)
            scores = [head.scores(outputs) for head in heads]
        reached = [i for i, score in enumerate(scores) if score.requires_grad]
        weights = drawn(part, heads, [score.detach() for score in scores], _LABELS, seed)
        for weight in weights if reached else ():
            slopes = torch.autograd.grad(
                [scores[i] for i in reached],
                list(recorder.leaves.values()),
                [weight[i] for i in reached],
                retain_graph=True,
                allow_unused=True,
            )
            for name, slope in zip(recorder.leaves, slopes, strict=True):
                # Rows of what has its batch elsewhere are no samples to average over.
                if slope is not None and slope.shape[1:] == network.shapes[name][0][1:]:
                    totals[name] = totals.get(name, 0.0) + slope.square().sum(0)
    return {name: _over_mean(totals.get(name)) for name in names}


def _over_mean(total: Tensor | None) -> Tensor:
    if total is None or not total.any():
        return torch.ones(())
    return total / total.mean()


class _Leaves(fx.Interpreter):
    """Runs the float network with gradients that stop at the first of the named nodes."""

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        super().__init__(network.module)
        self._names = set(names)
        self.leaves: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        value: Any = super().run_node(node)
        if node.name in self._names:
            # Weights need no gradients: a leaf where no earlier node lies.
            value = value if value.requires_grad else value.detach().requires_grad_()
            self.leaves[node.name] = value
        return value

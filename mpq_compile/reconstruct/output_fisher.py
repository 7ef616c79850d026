"""How much the network's output minds an error in each element of a tensor inside it.

    F = E_x E_{y ~ p(·|x)} (∂ log p_y / ∂z)²

the diagonal of the Fisher information of z, by which BRECQ (arXiv 2102.05426) weighs the error of
a block's output. Labels are drawn from the float network, so none are needed; and F is a mean over
samples, where the published form keeps a noisy one for each [derived].

Its other mean, over the features of one row of a linear layer, tells which tokens count: none
behind a mask, one where the output is read from one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.fisher import drawn
from mpq_compile.sensitivity.heads import find_heads
from mpq_compile.sensitivity.slices import cut, size_of, value_bytes

log = logging.getLogger(__name__)

_SAMPLES, _LABELS, _MEMORY_MB = 256, 2, 1024.0
# Batches that cannot be cut may take this much, where there is a way without.
_MOST_MB = 4096.0


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
    totals: dict[str, Tensor] = {}
    for _, slopes in _slopes(graph, batches, names, _LABELS, seed, samples):
        for name, slope in slopes.items():
            # Rows of what has its batch elsewhere are no samples to average over.
            if slope.shape[1:] == graph.network.shapes[name][0][1:]:
                totals[name] = totals.get(name, 0.0) + slope.square().sum(0)
    return {name: _over_mean(totals.get(name)) for name in names}


def row_fisher(
    graph: QuantizedGraph, batches: Sequence[Batch], sites: Iterable[str], seed: int = 0
) -> dict[str, list[Tensor]]:
    """Return how much each row of what linear layers give counts: the tokens of a transformer.

    The mean of F over a row's features, for one label a sample, over its mean in the sample:
    every sample counts alike, or a few that the network is unsure of would outweigh the others
    [derived; GuidedQuant, arXiv 2505.07004, weighs moments by squared gradients]. Convolutions
    are left out: there, cells of one picture weighed so were seen to make codes worse.

    Args:
        graph: The quantized graph; it is left switched to float.
        batches: Calibration data; all of it is used.
        sites: Ids of sites.
        seed: Of the labels.

    Returns:
        By site, float32 [rows] for each batch. Absent are sites that are no linear layers or have
        one row a sample, and those whose batch is not the first axis; and all where no output
        tells how far a network is from float.
    """
    network = graph.network
    names = {network.node_of[site]: site for site in sites if _has_rows(network, site)}
    sizes = [size_of(batch) for batch in batches]
    if not network.captured.dynamic_batch and _needed_mb(network, sizes) > _MOST_MB:
        log.info("all rows count alike: a batch is too large to be differentiated at once")
        return {}
    found: dict[str, list[Tensor]] = {}
    try:
        for size, slopes in _slopes(graph, batches, list(names), 1, seed, sum(sizes)):
            for name, slope in slopes.items():
                if len(slope) % size == 0 and slope.shape[1:] == network.shapes[name][0][1:]:
                    power = slope.square().mean(-1).reshape(size, -1)
                    found.setdefault(names[name], []).append(_shares(power))
    except CalibrationError as error:
        log.info("all rows count alike: %s", error.message)
        return {}
    rows = {site: torch.cat(parts) for site, parts in found.items()}
    return {
        site: [part.flatten() for part in every.split(sizes)]
        for site, every in rows.items()
        if len(every) == sum(sizes)
    }


def _shares(power: Tensor) -> Tensor:
    """Return [samples, rows] over the mean of each sample; ones where that tells nothing.

    What is finite may have a slope that is not, as a root at zero has.
    """
    mean = power.mean(1, keepdim=True)
    return torch.where(mean.isfinite() & (mean > 0), power / mean, 1.0)


def _needed_mb(network: Network, sizes: Sequence[int]) -> float:
    return 2 * value_bytes(network) * max(sizes) / 1e6


def _has_rows(network: Network, site: str) -> bool:
    """Tell whether a site is a linear layer with several rows a sample."""
    node = network.node(network.node_of[site])
    shape = network.shapes[node.name][0]
    samples = network.captured.example_inputs[0].shape[:1]
    return is_call(node, ops.site_linear) and prod(shape[:-1]) > prod(samples)


def _slopes(
    graph: QuantizedGraph,
    batches: Sequence[Batch],
    names: Sequence[str],
    labels: int,
    seed: int,
    samples: int,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield ∂ log p_y / ∂z of some nodes for one label after the other, and of how many samples.

    Sums of squares over all that is yielded estimate F times the number of samples.
    """
    network = graph.network
    if not names:
        return
    slices = cut(batches, network, samples, 2 * value_bytes(network), _MEMORY_MB)
    heads = find_heads(graph, slices)
    for part in track(slices, "fisher"):
        recorder = _Leaves(network, names)
        with torch.enable_grad():
            outputs = recorder.run(*part.batch.inputs)
            scores = [head.scores(outputs) for head in heads]
        reached = [i for i, score in enumerate(scores) if score.requires_grad]
        weights = drawn(part, heads, [score.detach() for score in scores], labels, seed)
        for number, weight in enumerate(weights if reached else (), 1):
            slopes = torch.autograd.grad(
                [scores[i] for i in reached],
                list(recorder.leaves.values()),
                [weight[i] for i in reached],
                retain_graph=number < len(weights),
                allow_unused=True,
            )
            pairs = zip(recorder.leaves, slopes, strict=True)
            yield part.size, {name: slope for name, slope in pairs if slope is not None}


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

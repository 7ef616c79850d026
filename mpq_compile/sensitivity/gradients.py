"""Inner products ⟨∂s/∂z, Δz(c)⟩ for every site and candidate from a few backward passes.

z is a site's output, Δz(c) what a candidate changes in it, s a weighted sum of the network's scores
(log-probabilities). To first order the inner product is the change of s, so that

    ΔL(c) ≈ ½ E Σ_v ⟨g_v, Δz(c)⟩²        with Σ_v g_v g_vᵀ the curvature of the loss at z

One backward pass gives g_v of every site and sample, and serves all candidates; the products of two
sites give their cross term for nothing. Taking Δz from the quantized weight and input together
extends methods that look at weights alone to activations [derived].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.passes.network import Network
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.heads import Head
from mpq_compile.sensitivity.slices import Slice, per_sample, site_bytes, value_bytes
from mpq_compile.sensitivity.sweep import Advance

# From the scores of a slice, one tensor a head, to the weights of each backward pass.
Weights = Callable[[Slice, Sequence[Tensor]], Sequence[Sequence[Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One float run that gradients can be taken of.

    Args:
        values: Value of every node, without gradients.
        sites: Output of each site, with.
        outputs: The network's outputs, with.
    """

    values: dict[str, Any]
    sites: dict[str, Tensor]
    outputs: tuple[Tensor, ...]


def gradient_bytes(network: Network, passes: int, candidates: int) -> float:
    """Return what is kept of one sample: values and their gradients, slopes, changes."""
    widest = site_bytes(network) / max(1, len(network.sites)) ** 0.5
    return 3 * value_bytes(network) + passes * site_bytes(network) + (candidates + 1) * widest


def record(graph: QuantizedGraph, batch: Batch) -> Recording:
    """Run in float, with gradients that stop at the first sites."""
    graph.assign({})
    names = {graph.network.node_of[site.id]: site.id for site in graph.network.sites}
    sites: dict[str, Tensor] = {}

    class Tracked(ValueRecorder):
        def run_node(self, node: fx.Node) -> Any:
            value: Any = super().run_node(node)
            if node.name in names:
                # A leaf where no earlier site lies: weights need no gradients.
                value = value if value.requires_grad else value.detach().requires_grad_()
                sites[names[node.name]] = value
                self.kept[node.name] = value
            return value

    recorder = Tracked(graph.module, lambda _, value: value)
    with torch.enable_grad():
        outputs = recorder.run(*batch.inputs)
    values = {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in recorder.kept.items()
    }
    return Recording(values=values, sites=sites, outputs=tuple(outputs))


def inner_products(
    graph: QuantizedGraph,
    part: Slice,
    heads: Sequence[Head],
    weights: Weights,
    choices: Choices,
    advance: Advance,
) -> Tensor:
    """Return ⟨g_v, Δz(c)⟩, float64 [(site, candidate) in the order of ``pairs``, B, passes].

    Those of tied sites are added up: to first order, changes of the scores do.

    Raises:
        CalibrationError: A site's output does not hold whole samples one after the other.
    """
    recording = record(graph, part.batch)
    with torch.enable_grad():
        scores = [head.scores(recording.outputs) for head in heads]
    slopes = _slopes(recording, scores, weights(part, [score.detach() for score in scores]))
    rows = []
    for site, names in choices.items():
        candidates = [name for name in names if name != "fp32"]
        if candidates:
            members = graph.tied_to(site)
            products = [
                _products(graph, part, recording, member, candidates, slopes[member])
                for member in members
            ]
            rows.append(torch.stack(products).sum(0))
        advance(1)
    return torch.cat(rows) if rows else torch.zeros(0, part.size, 1, dtype=torch.float64)


def _products(
    graph: QuantizedGraph,
    part: Slice,
    recording: Recording,
    site: str,
    candidates: Sequence[str],
    slopes: Sequence[Tensor],
) -> Tensor:
    """Return the products of one site, float64 [candidates, B, passes]."""
    exact = recording.values[graph.network.node_of[site]]
    changes = [
        _rows(value - exact, part.size, site)
        for _, value in graph.site_outputs(recording.values, site, candidates)
    ]
    gradients = torch.stack([_rows(slope, part.size, site) for slope in slopes])
    products = torch.bmm(torch.stack(changes, 1), gradients.permute(1, 2, 0))
    return products.transpose(0, 1).double()


def _slopes(
    recording: Recording, scores: Sequence[Tensor], weights: Sequence[Sequence[Tensor]]
) -> dict[str, list[Tensor]]:
    """Return the gradients of each weighted sum of scores at every site's output."""
    sites = list(recording.sites)
    leaves = [recording.sites[site] for site in sites]
    slopes: dict[str, list[Tensor]] = {site: [] for site in sites}
    # Scores that no site reaches have no gradient.
    reached = [i for i, score in enumerate(scores) if score.requires_grad]
    for weight in weights:
        found = torch.autograd.grad(
            [scores[i] for i in reached],
            leaves,
            [weight[i] for i in reached],
            retain_graph=True,
            allow_unused=True,
        )
        for site, leaf, slope in zip(sites, leaves, found, strict=True):
            slopes[site].append(torch.zeros_like(leaf) if slope is None else slope)
    return slopes


def _rows(value: Tensor, size: int, site: str) -> Tensor:
    rows = per_sample(value, size)
    if rows is None:
        raise CalibrationError(
            "the samples of a batch cannot be told apart",
            where=site,
            expected=f"an output whose first axis is a multiple of the batch of {size}",
            found=str(list(value.shape)),
            remedy="use a metric that needs no gradients, such as metric='kl' or metric='sqnr'",
        )
    return rows


def half_squares(products: Tensor) -> Tensor:
    """Return ½ Σ_v ⟨g_v, Δz⟩² of each sample, float64 [rows, B]."""
    return products.square().sum(2) / 2

"""Losses of pairs of sites: what two lose together beyond the sum of what each loses alone.

CLADO (arXiv 2307.05657) [source]: the loss is quadratic in the choice,

    L(x) = Σ_i L_i + Σ_{i<j} G_ij        with G_ij = L_ij − L_i − L_j and G_ii = 2 L_i

where L_ij has two sites quantized together: one evaluation for each pair of candidates. Here every
(site, candidate) is evaluated alone, and kept as a displacement φ of the output's distribution
whose ½ E ‖φ‖² is its loss. To first order displacements add, so that

    G_ij = s_i s_j E ⟨φ_i, φ_j⟩        [derived]

for all pairs from one pass. By ``form``:

- ``divergence``: φ = 2 (√q − √p) with q the output's distribution with one site quantized, its
  squared norm four times the squared Hellinger distance, which is the Kullback–Leibler divergence
  to second order and stays bounded; L_i is the divergence itself, and s_i = √(2 L_i / E ‖φ_i‖²)
  makes the two agree. Errors that destroy the output on their own saturate, as true losses do.
- ``gauss_newton``: φ are the inner products of ``gauss_newton``, s = 1; a few backward passes.

Either matrix with its diagonal is positive semidefinite as it comes, nothing is clipped. Keeping
only some pairs may lose that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, pairs, table_of, tied
from mpq_compile.sensitivity.divergence import (
    Outputs,
    displacement,
    divergence,
    output_bytes,
    per_output,
)
from mpq_compile.sensitivity.gauss_newton import GaussNewtonMetric
from mpq_compile.sensitivity.gradients import half_squares
from mpq_compile.sensitivity.heads import Head, find_heads
from mpq_compile.sensitivity.neighbours import near_pairs
from mpq_compile.sensitivity.slices import Slice, example_size
from mpq_compile.sensitivity.sweep import Advance, Sweep, joined
from mpq_compile.types import SensitivityTable

_TINY = 1e-30
PairTerms = Mapping[tuple[str, str], Mapping[tuple[str, str], float]]


@dataclass(frozen=True, kw_only=True)
class PairwiseMetric:
    """Divergence from float with cross terms between sites.

    Args:
        samples: Calibration samples that are used.
        form: Where displacements come from: ``divergence`` or ``gauss_newton``.
        scope: ``near`` keeps adjacent and residual pairs and those of one block; ``all`` keeps all.
        seed: Of ``gauss_newton``'s random passes.
        memory_mb: Memory for what is kept of a slice, 10⁶ bytes.
        resume: Go on where an earlier run was stopped.
    """

    samples: int = 256
    form: Literal["divergence", "gauss_newton"] = "divergence"
    scope: Literal["near", "all"] = "near"
    seed: int = 0
    memory_mb: float = 1024.0
    resume: bool = True
    needs_labels: bool = False
    unit: str = "KL"

    def __call__(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
    ) -> SensitivityTable:
        measure = _by_gradients if self.form == "gauss_newton" else _by_divergence
        samples, gram = measure(self, network, calibration, batches, choices)
        sites = [site.id for site in network.sites if site.id in choices]
        near = near_pairs(network) if self.scope == "near" else list(combinations(sites, 2))
        chosen = [pair for pair in _of_first(network, near) if set(pair) <= set(choices)]
        terms = cross_terms(choices, chosen, gram)
        return table_of("pairwise", self.unit, choices, samples, terms)


def _of_first(network: Network, near: Sequence[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Return pairs of the sites that stand for those of the given pairs, each once, in order."""
    order = {site.id: number for number, site in enumerate(network.sites)}
    first = {site: members[0] for site, members in tied(network).items()}
    found = {frozenset((first[a], first[b])) for a, b in near}
    ordered = [tuple(sorted(pair, key=order.__getitem__)) for pair in found if len(pair) == 2]
    return sorted(((a, b) for a, b in ordered), key=lambda pair: (order[pair[0]], order[pair[1]]))


def cross_terms(choices: Choices, chosen: Sequence[tuple[str, str]], gram: Tensor) -> PairTerms:
    """Return the cross terms of the chosen pairs of sites; zero where one of them is fp32.

    Args:
        choices: Candidates of each site.
        chosen: Pairs of sites.
        gram: s_i s_j E ⟨φ_i, φ_j⟩, float64 [rows, rows], rows in the order of ``pairs``.
    """
    row = {key: number for number, key in enumerate(pairs(choices))}
    values = gram.tolist()

    def term(a: tuple[str, str], b: tuple[str, str]) -> float:
        return values[row[a]][row[b]] if a in row and b in row else 0.0

    return {
        (a, b): {(x, y): term((a, x), (b, y)) for x in choices[a] for y in choices[b]}
        for a, b in chosen
    }


def _by_gradients(
    metric: PairwiseMetric,
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    choices: Choices,
) -> tuple[Tensor, Tensor]:
    """Return each sample's loss [rows, N] and the Gram matrix of the inner products."""
    inner = GaussNewtonMetric(
        samples=metric.samples,
        seed=metric.seed,
        memory_mb=metric.memory_mb,
        resume=metric.resume,
    )
    form = inner.form(network, calibration, batches, choices, name="pairwise")
    products = form.products(inner.weights)
    samples = joined([half_squares(part) for part in products])
    gram = torch.stack([part.flatten(1) @ part.flatten(1).T for part in products]).sum(0)
    return samples, gram / samples.shape[1]


def _by_divergence(
    metric: PairwiseMetric,
    network: Network,
    calibration: Calibration,
    batches: Sequence[Batch],
    choices: Choices,
) -> tuple[Tensor, Tensor]:
    """Return each sample's divergence [rows, N] and the scaled Gram matrix."""
    kept = output_bytes(network) + _displacement_bytes(network, choices)
    sweep = Sweep.of(metric, "pairwise", network, calibration, batches, choices, kept)
    both = partial(_divergence_and_displacement, find_heads(sweep.graph, sweep.slices))

    def compute(part: Slice, advance: Advance) -> dict[str, Tensor]:
        values = sweep.graph.float_values(part.batch)
        found = per_output(sweep.graph, values, choices, advance, both)
        moved = found[:, :, 1:].flatten(1)
        return {"kl": found[:, :, 0].contiguous(), "gram": moved @ moved.T}

    results = sweep.run(compute)
    samples = joined(results["kl"])
    gram = torch.stack(results["gram"]).sum(0) / samples.shape[1]
    scale = (2 * samples.mean(1) / gram.diagonal().clamp_min(_TINY)).sqrt()
    return samples, gram * scale[:, None] * scale[None]


def _divergence_and_displacement(heads: Sequence[Head], exact: Outputs, found: Outputs) -> Tensor:
    """Return [B, 1 + elements]: the divergence, then the displacement."""
    parts = divergence(heads, exact, found)[:, None], displacement(heads, exact, found)
    return torch.cat(parts, 1)


def _displacement_bytes(network: Network, choices: Choices) -> float:
    """Return the bytes of one sample's float64 displacements, twice: collected and stacked."""
    outputs = next(n for n in network.module.graph.nodes if n.op == "output").all_input_nodes
    elements = sum(_elements(network, node.name) for node in outputs) / example_size(network)
    return 16.0 * elements * sum(1 for _ in pairs(choices))


def _elements(network: Network, name: str) -> int:
    size = 1
    for length in network.shapes[name][0]:
        size *= length
    return size

"""The outputs with one site quantized at a time, as divergences from float and displacements.

Everything before a site is computed once for all its candidates, and candidates that read their
input in one format share its quantized form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpq_compile.passes.network import Network
from mpq_compile.sensitivity.base import Choices, QuantizedGraph
from mpq_compile.sensitivity.heads import Head
from mpq_compile.sensitivity.slices import value_bytes
from mpq_compile.sensitivity.sweep import Advance

Outputs = Sequence[Tensor]


def output_bytes(network: Network) -> float:
    """Return what is kept of one sample: two sets of values, and the one being computed."""
    return 3 * value_bytes(network)


def per_output(
    graph: QuantizedGraph,
    values: Mapping[str, Any],
    choices: Choices,
    advance: Advance,
    of: Callable[[Outputs, Outputs], Tensor],
) -> Tensor:
    """Return ``of(float outputs, outputs)`` of each (site, candidate), in the order of ``pairs``.

    Args:
        graph: The quantized graph.
        values: Value of every node in float.
        choices: Candidates of each site.
        advance: Is told of each site that is done.
        of: Gives a tensor of one shape; the first of the result's axes is (site, candidate).
    """
    rows = []
    for site, names in choices.items():
        candidates = [name for name in names if name != "fp32"]
        for _, found in graph.outputs_for(values, site, candidates):
            rows.append(of(values["output"], found))
        advance(1)
    if not rows:  # every site is fp32
        return of(values["output"], values["output"])[None][:0]
    return torch.stack(rows)


def divergence(heads: Sequence[Head], exact: Outputs, found: Outputs) -> Tensor:
    """Return the sum over outputs of KL(exact ‖ found), float64 [B]."""
    return torch.stack([head.divergence(*_scores(head, exact, found)) for head in heads]).sum(0)


def displacement(heads: Sequence[Head], exact: Outputs, found: Outputs) -> Tensor:
    """Return the displacements of all outputs side by side, float64 [B, elements]."""
    return torch.cat([head.displacement(*_scores(head, exact, found)) for head in heads], 1)


def _scores(head: Head, exact: Outputs, found: Outputs) -> tuple[Tensor, Tensor]:
    # A divergence of 1e-8 nats is a difference of numbers near one: float32 would lose it.
    return (
        head.scores([value.double() for value in exact]),
        head.scores([value.double() for value in found]),
    )

"""Second-order Taylor loss with the empirical Fisher (MPQCO, arXiv 2110.06554).

With L = −log p_y the kept part of the Hessian is g gᵀ, g = ∇ log p_y, so

    ΔL_l(c) = 1/(2N) Σ_n (g_{n,l} · ΔW_l(c))²      [derived]

The inner product needs no gradient of weights: it is ⟨∂L_n/∂z_n, Δz_n⟩ with z the site's output
and Δz_n what the candidate changes in it. One backward pass gives ∂L/∂z of every site and sample,
and serves all candidates. Taking Δz from the quantized weight and input together extends the
metric to activations [derived].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from mpq_compile.calibrate import Batch, spread
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.passes.insert_quantizers import set_assignment
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, QuantizedGraph, empty_table, pairs
from mpq_compile.types import SensitivityTable


@dataclass(frozen=True, kw_only=True)
class TaylorMetric:
    """Empirical-Fisher loss increase; needs labels.

    Args:
        samples: Calibration samples that are used.
    """

    samples: int = 1024
    needs_labels: bool = True
    unit: str = "cross-entropy"

    def __call__(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
    ) -> SensitivityTable:
        graph = QuantizedGraph(network, calibration)
        chosen = spread(batches, self.samples)
        loss = empty_table(choices)
        total = sum(len(batch.inputs[0]) for batch in chosen)
        for index, batch in enumerate(track(chosen, "sensitivity (taylor)")):
            if batch.labels is None:
                raise CalibrationError(
                    "the taylor metric needs labels",
                    where=f"calibration batch {index}",
                    expected="batches of (inputs, labels)",
                    found="inputs only",
                    remedy="give labels, or use metric='sqnr'",
                )
            values, slopes = _values_and_slopes(graph, batch.inputs, batch.labels)
            for site, candidate in pairs(choices):
                change = graph.site_output(values, site, candidate) - values[_node(network, site)]
                inner = (slopes[site] * change).flatten(1).sum(1).double()
                loss[site][candidate] += float(inner.square().sum()) / (2 * total)
        return SensitivityTable(metric="taylor", unit=self.unit, loss=loss)


def _node(network: Network, site: str) -> str:
    return network.node_of[site]


def _values_and_slopes(
    graph: QuantizedGraph, inputs: tuple[Tensor, ...], labels: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return every value of the float run, and ∂(−log p_y)/∂z of each site's output z."""
    network = graph.network
    set_assignment(graph.module, network, {})
    sites = {network.node_of[site.id]: site.id for site in network.sites}
    outputs: dict[str, Tensor] = {}

    class Tracked(ValueRecorder):
        def run_node(self, node: fx.Node) -> Any:
            value: Any = super().run_node(node)
            if node.name in sites:
                # A leaf where no earlier site lies: gradients stop at sites, not at weights.
                value = value if value.requires_grad else value.detach().requires_grad_()
                value.retain_grad()
                outputs[sites[node.name]] = value
            return value

    recorder = Tracked(graph.module, lambda _, value: value)
    with torch.enable_grad():
        logits = recorder.run(*inputs)[0]
        F.cross_entropy(logits.flatten(1), labels.long(), reduction="sum").backward()
    slopes = {
        site: torch.zeros_like(value) if value.grad is None else value.grad
        for site, value in outputs.items()
    }
    detached = {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in recorder.kept.items()
    }
    return detached, slopes

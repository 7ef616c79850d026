"""The pass that ``taylor``, ``fisher`` and ``gauss_newton`` share; they differ in their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, table_of
from mpq_compile.sensitivity.gradients import gradient_bytes, half_squares, inner_products
from mpq_compile.sensitivity.heads import Head, find_heads
from mpq_compile.sensitivity.slices import Slice
from mpq_compile.sensitivity.sweep import Advance, Options, Sweep, joined
from mpq_compile.types import SensitivityTable

# Scores of a slice, one tensor a head → the weights of each backward pass, alike.
HeadWeights = Callable[[Slice, Sequence[Head], Sequence[Tensor]], Sequence[Sequence[Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """One such pass."""

    sweep: Sweep

    @classmethod
    def of(
        cls,
        metric: Options,
        name: str,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
        *,
        passes: int,
    ) -> Quadratic:
        """Cut the data for ``passes`` backward passes."""
        candidates = max(len(names) for names in choices.values())
        kept = gradient_bytes(network, passes, candidates)
        return cls(sweep=Sweep.of(metric, name, network, calibration, batches, choices, kept))

    def products(self, weights: HeadWeights) -> list[Tensor]:
        """Return the inner products of each slice, float64 [rows, B, passes]."""
        graph, choices = self.sweep.graph, self.sweep.choices
        heads = find_heads(graph, self.sweep.slices)

        def compute(part: Slice, advance: Advance) -> dict[str, Tensor]:
            def of_scores(part: Slice, scores: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
                return weights(part, heads, scores)

            products = inner_products(graph, part, heads, of_scores, choices, advance)
            return {"products": products}

        return self.sweep.run(compute)["products"]

    def table(self, unit: str, weights: HeadWeights) -> SensitivityTable:
        """Return the mean of ½ Σ_v ⟨g_v, Δz⟩² over samples, without cross terms."""
        samples = joined([half_squares(part) for part in self.products(weights)])
        return table_of(self.sweep.name, unit, self.sweep.choices, samples)

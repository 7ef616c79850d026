"""The pass that ``taylor``, ``fisher`` and ``gauss_newton`` share; they differ in their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, QuantizedGraph, table_of
from mpq_compile.sensitivity.gradients import gradient_bytes, half_squares, inner_products
from mpq_compile.sensitivity.heads import Head, find_heads
from mpq_compile.sensitivity.slices import Slice, cut
from mpq_compile.sensitivity.sweep import Advance, Sweep, joined
from mpq_compile.types import SensitivityTable

# Scores of a slice, one tensor a head → the weights of each backward pass, alike.
HeadWeights = Callable[[Slice, Sequence[Head], Sequence[Tensor]], Sequence[Sequence[Tensor]]]


class Options(Protocol):
    """What a metric of this family is asked for."""

    @property
    def samples(self) -> int: ...
    @property
    def memory_mb(self) -> float: ...
    @property
    def resume(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """Graph, data and candidates of one run."""

    options: Options
    graph: QuantizedGraph
    slices: tuple[Slice, ...]
    choices: Choices

    @classmethod
    def of(
        cls,
        options: Options,
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
        return cls(
            options=options,
            graph=QuantizedGraph(network, calibration),
            slices=cut(batches, network, options.samples, kept, options.memory_mb),
            choices=choices,
        )

    def products(self, name: str, weights: HeadWeights) -> list[Tensor]:
        """Return the inner products of each slice, float64 [rows, B, passes]."""
        heads = find_heads(self.graph, self.slices)

        def compute(part: Slice, advance: Advance) -> dict[str, Tensor]:
            def of_scores(part: Slice, scores: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
                return weights(part, heads, scores)

            products = inner_products(self.graph, part, heads, of_scores, self.choices, advance)
            return {"products": products}

        sweep = Sweep(
            metric=self.options,
            name=name,
            graph=self.graph,
            slices=self.slices,
            choices=self.choices,
            resume=self.options.resume,
        )
        return sweep.run(compute)["products"]

    def table(self, name: str, unit: str, weights: HeadWeights) -> SensitivityTable:
        """Return the mean of ½ Σ_v ⟨g_v, Δz⟩² over samples, without cross terms."""
        samples = joined([half_squares(part) for part in self.products(name, weights)])
        return table_of(name, unit, self.choices, samples)

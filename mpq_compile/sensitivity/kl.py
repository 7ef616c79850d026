"""Kullback–Leibler divergence from the float network, one site quantized at a time.

    loss_l(c) = E_x KL( p(·|x) ‖ p_{l ← c}(·|x) )

It is the increase of the cross-entropy where the float network is right about its own certainty, it
needs no labels, and it holds at any size of error: no term of a series is dropped [derived]. What
follows the site is run again for each candidate, as in ``sqnr``; ``gauss_newton`` is its second
order, from a few backward passes for all candidates at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, table_of
from mpq_compile.sensitivity.divergence import divergence, output_bytes, per_output
from mpq_compile.sensitivity.heads import find_heads
from mpq_compile.sensitivity.slices import Slice
from mpq_compile.sensitivity.sweep import Advance, Sweep, joined
from mpq_compile.types import SensitivityTable


@dataclass(frozen=True, kw_only=True)
class KlMetric:
    """Divergence of the output from float.

    Args:
        samples: Calibration samples that are used.
        memory_mb: Memory for what is kept of a slice, 10⁶ bytes.
        resume: Go on where an earlier run was stopped.
    """

    samples: int = 256
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
        kept = output_bytes(network)
        sweep = Sweep.of(self, "kl", network, calibration, batches, choices, kept)
        distance = partial(divergence, find_heads(sweep.graph, sweep.slices))

        def compute(
            part: Slice, values: Mapping[str, Any], own: Choices, advance: Advance
        ) -> dict[str, Tensor]:
            return {"kl": per_output(sweep.graph, values, own, advance, distance)}

        return table_of("kl", self.unit, choices, joined(sweep.run_by_site(compute)["kl"]))

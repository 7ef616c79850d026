"""Signal-to-quantization-noise ratio of the network's output, without labels.

Phase 1 of the practical PTQ algorithm (arXiv 2302.05397) [source]: all quantizers off, one (site,
candidate) on at a time. The loss is the reciprocal of the SQNR, the noise-to-signal ratio
Σ‖y_q − y‖² / Σ‖y‖²: noise powers of independent sites add, decibels do not [derived].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mpq_compile.calibrate import Batch, spread
from mpq_compile.passes.network import Network
from mpq_compile.progress import track
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, QuantizedGraph, empty_table, pairs
from mpq_compile.types import SensitivityTable


def noise_to_signal(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return Σ‖y_q − y‖² / Σ‖y‖², averaged over the outputs; float64."""
    ratios = []
    for value, exact in zip(outputs, reference, strict=True):
        signal = exact.double().square().sum().item()
        noise = (value.double() - exact.double()).square().sum().item()
        ratios.append(noise / signal if signal > 0 else float(noise > 0))
    return sum(ratios) / len(ratios)


def decibels(ratio: float) -> float:
    """Return the SQNR in dB of a noise-to-signal ratio."""
    return math.inf if ratio <= 0 else -10 * math.log10(ratio)


@dataclass(frozen=True, kw_only=True)
class SqnrMetric:
    """Noise-to-signal ratio of the output.

    Args:
        samples: Calibration samples that are used.
    """

    samples: int = 64
    needs_labels: bool = False
    unit: str = "noise/signal"

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
        work = [(batch, site) for batch in chosen for site in choices]
        values, current = {}, None
        for batch, site in track(work, "sensitivity (sqnr)"):
            if batch is not current:
                values, current = graph.float_values(batch), batch
            for _, candidate in pairs({site: choices[site]}):
                outputs = graph.outputs_with(values, site, candidate)
                ratio = noise_to_signal(outputs, values["output"])
                loss[site][candidate] += ratio / len(chosen)
        return SensitivityTable(metric="sqnr", unit=self.unit, loss=loss)

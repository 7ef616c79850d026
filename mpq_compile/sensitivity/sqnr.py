"""Signal-to-quantization-noise ratio of the network's output, without labels.

Phase 1 of the practical PTQ algorithm (arXiv 2302.05397) [source]: all quantizers off, one (site,
candidate) on at a time. The loss is the reciprocal of the SQNR, the noise-to-signal ratio
Σ‖y_q − y‖² / Σ‖y‖²: noise powers of independent sites add, decibels do not [derived].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, by_site, table_of
from mpq_compile.sensitivity.divergence import output_bytes, per_output
from mpq_compile.sensitivity.slices import Slice, per_sample
from mpq_compile.sensitivity.sweep import Advance, Sweep
from mpq_compile.types import SensitivityTable

_TINY = 1e-30


def noise_to_signal(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return Σ‖y_q − y‖² / Σ‖y‖², averaged over the outputs; float64."""
    noise, signal = _noise(1, reference, outputs).sum(1), _signal(1, reference).sum(1)
    return float(_ratio(noise, signal).mean())


def decibels(ratio: float) -> float:
    """Return the SQNR in dB of a noise-to-signal ratio."""
    return math.inf if ratio <= 0 else -10 * math.log10(ratio)


def _ratio(noise: Tensor, signal: Tensor) -> Tensor:
    return torch.where(signal > 0, noise / signal, (noise > 0).double())


def _noise(size: int, exact: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    """Return ‖y_q − y‖² of each output and sample, float64 [outputs, B]."""
    differences = [b.double() - a.double() for a, b in zip(exact, found, strict=True)]
    return _signal(size, differences)


def _signal(size: int, outputs: Sequence[Tensor]) -> Tensor:
    """Return ‖y‖² of each output and sample, float64 [outputs, B].

    Where the rows of an output are not samples, each sample gets an equal part.
    """
    powers = []
    for value in outputs:
        squares = value.double().square()
        rows = per_sample(squares, size)
        powers.append((squares.sum() / size).expand(size) if rows is None else rows.sum(1))
    return torch.stack(powers)


@dataclass(frozen=True, kw_only=True)
class SqnrMetric:
    """Noise-to-signal ratio of the output.

    Args:
        samples: Calibration samples that are used.
        memory_mb: Memory for what is kept of a slice, 10⁶ bytes.
        resume: Go on where an earlier run was stopped.
    """

    samples: int = 64
    memory_mb: float = 1024.0
    resume: bool = True
    needs_labels: bool = False
    unit: str = "noise/signal"

    def __call__(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
    ) -> SensitivityTable:
        kept = output_bytes(network)
        sweep = Sweep.of(self, "sqnr", network, calibration, batches, choices, kept)

        def compute(
            part: Slice, values: Mapping[str, Any], own: Choices, advance: Advance
        ) -> dict[str, Tensor]:
            of = partial(_noise, part.size)
            noise = per_output(sweep.graph, values, own, advance, of)
            # Each site says what the signal is, in a row of its own.
            return {"noise": noise, "signal": _signal(part.size, values["output"])[None]}

        found = sweep.run_by_site(compute)
        noise, signal = torch.cat(found["noise"], 2), torch.cat(found["signal"], 2)[0]
        return self._table(choices, noise, signal)

    def _table(self, choices: Choices, noise: Tensor, signal: Tensor) -> SensitivityTable:
        """Return the ratio of sums over samples; its spread to first order (delta method).

        Args:
            choices: Candidates of each site.
            noise: ‖y_q − y‖², float64 [rows, outputs, N].
            signal: ‖y‖², float64 [outputs, N].
        """
        ratio = _ratio(noise.sum(2), signal.sum(1)).mean(1)
        mean = signal.mean(1, keepdim=True).clamp_min(_TINY)
        each = noise / mean - (noise.mean(2, keepdim=True) / mean) * (signal / mean - 1)
        table = table_of("sqnr", self.unit, choices, each.mean(1))
        return replace(table, loss=by_site(choices, ratio))

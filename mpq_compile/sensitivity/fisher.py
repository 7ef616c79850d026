"""Second-order loss with the Fisher information, its labels drawn from the network's own softmax.

    ΔL_l(c) = ½ E_x E_{y ~ p(·|x)} ⟨∇ log p_y, Δz_l(c)⟩²      [derived]

The inner expectation is the Gauss-Newton form, so this is an unbiased estimate of the second-order
Kullback–Leibler divergence and needs no labels; unlike the empirical Fisher it does not vanish
where the network is certain. For a regression y is drawn from a normal distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices
from mpq_compile.sensitivity.heads import Head
from mpq_compile.sensitivity.quadratic import Quadratic
from mpq_compile.sensitivity.slices import Slice, draws
from mpq_compile.types import SensitivityTable


@dataclass(frozen=True, kw_only=True)
class FisherMetric:
    """Model-sampled Fisher loss increase.

    Args:
        samples: Calibration samples that are used.
        labels_a_sample: Labels drawn for each; a backward pass each.
        seed: Of the draws; the same seed gives the same table however the data is split.
        memory_mb: Memory for what is kept of a slice, 10⁶ bytes.
        resume: Go on where an earlier run was stopped.
    """

    samples: int = 256
    labels_a_sample: int = 4
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
        passes = self.labels_a_sample
        quadratic = Quadratic.of(
            self, "fisher", network, calibration, batches, choices, passes=passes
        )
        return quadratic.table(self.unit, self._weights)

    def _weights(
        self, part: Slice, heads: Sequence[Head], scores: Sequence[Tensor]
    ) -> list[list[Tensor]]:
        return drawn(part, heads, scores, self.labels_a_sample, self.seed)


def drawn(
    part: Slice, heads: Sequence[Head], scores: Sequence[Tensor], count: int, seed: int
) -> list[list[Tensor]]:
    """Return ``count`` weightings of the scores whose gradients g have E Σ g gᵀ = the Fisher.

    Args:
        part: The samples; each has a generator of its own.
        heads, scores: The outputs, and what they say of these samples.
        count: Labels a sample, or normal draws for a regression.
        seed: Of the draws.
    """
    tensors: list[Tensor] = []
    for number, (head, score) in enumerate(zip(heads, scores, strict=True)):
        _, classes, positions = score.shape
        places = positions if head.classes is not None else classes
        numbers = draws(seed + number, part, (count, places))
        one = _labels if head.classes is not None else _normals
        tensors.append(one(score, numbers) / (count * positions) ** 0.5)
    return [[tensor[:, v] for tensor in tensors] for v in range(count)]


def _labels(score: Tensor, numbers: np.ndarray) -> Tensor:
    """Return one-hot draws of p, [B, count, K, positions], by its cumulative sum."""
    cumulative = score.double().exp().cumsum(1).unsqueeze(1)
    uniform = torch.from_numpy(numbers).unsqueeze(2) * cumulative[:, :, -1:]
    label = (cumulative < uniform).sum(2, keepdim=True)
    shape = (*numbers.shape[:2], *score.shape[1:])
    return torch.zeros(shape).scatter_(2, label, 1.0)


def _normals(score: Tensor, numbers: np.ndarray) -> Tensor:
    """Return standard normal draws, [B, count, elements, 1]."""
    return torch.from_numpy(ndtri(numbers.clip(1e-12))).float().unsqueeze(3)

"""Rounding error of the weights alone, without data (MixQuant, arXiv 2309.17341).

    mse:       QE_l(c) = mean (w − ŵ)²
    relative:  QE_l(c) = mean |w − ŵ| / |w|       over weights that are not zero

MixQuant compares a layer's error with the same layer's at 8 bits [source]. Its published choices
do not follow from the mean squared error, whose ratio to 8 bits is about 4, 16 and 66 at 7, 6 and
5 bits; they fit the mean relative error. Activations are not looked at: candidates that differ in
them alone have one loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mpq_compile.calibrate import Batch
from mpq_compile.passes.network import Network
from mpq_compile.passes.rounding import rounded_weight
from mpq_compile.quant.calibration import Calibration
from mpq_compile.sensitivity.base import Choices, by_site, pairs
from mpq_compile.solve.mixquant import ErrorMetric, quantize_asymmetric, rounding_error
from mpq_compile.types import Candidate, SensitivityTable


@dataclass(frozen=True, kw_only=True)
class RoundoffMetric:
    """Rounding error of each site's weights.

    Args:
        measure: ``mse``, or ``relative`` for the mean relative error.
        quantizer: ``deployed`` rounds as this package does; ``asymmetric`` as MixQuant does.
    """

    measure: ErrorMetric = "mse"
    quantizer: Literal["deployed", "asymmetric"] = "deployed"
    needs_labels: bool = False

    @property
    def unit(self) -> str:
        """What the loss is counted in."""
        return "mean squared error" if self.measure == "mse" else "mean relative error"

    def __call__(
        self,
        network: Network,
        calibration: Calibration,
        batches: Sequence[Batch],
        choices: Choices,
    ) -> SensitivityTable:
        losses = []
        for site, name in pairs(choices):
            weight = network.weight(site).detach().double()
            rounded = self._rounded(network, calibration, site, Candidate.parse(name)).double()
            losses.append(error(weight, rounded, self.measure))
        name = "roundoff" if self.measure == "mse" else "roundoff_relative"
        return SensitivityTable(metric=name, unit=self.unit, loss=by_site(choices, losses))

    def _rounded(
        self, network: Network, calibration: Calibration, site: str, candidate: Candidate
    ) -> Tensor:
        weight = network.weight(site).detach()
        if candidate.weight_bits == 16:
            return weight.bfloat16()
        if self.quantizer == "asymmetric":
            return asymmetric(weight, candidate.weight_bits)[1]
        return rounded_weight(network, calibration, site, candidate).dequantize()


relative = partial(RoundoffMetric, measure="relative")


def error(weight: Tensor, rounded: Tensor, measure: ErrorMetric) -> float:
    """Return QE of a tensor and what rounding made of it."""
    return rounding_error(weight.numpy(), rounded.numpy(), measure)


def asymmetric(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return MixQuant's codes of a tensor (``quantize_asymmetric``), and the values they stand for.

    >>> asymmetric(torch.tensor([-1.0, 0.01, 1.0, 2.0]), 2)
    (tensor([-2., -1.,  0.,  1.]), tensor([-1.,  0.,  1.,  2.]))
    """
    found = quantize_asymmetric(weight.numpy(), bits)
    return torch.from_numpy(found.codes).to(weight), torch.from_numpy(found.dequantize()).to(weight)

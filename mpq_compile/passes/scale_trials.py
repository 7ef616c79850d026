"""What channels hold on calibration data, and what scales on trial make of a site's error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from mpq_compile.errors import CalibrationError
from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import by_column, column_factors
from mpq_compile.passes.seams import Seam, channel_axis
from mpq_compile.quant.observers import Histogram, activation_qparams, fake_quantize
from mpq_compile.quant.weights import quantize_weight, weight_spec
from mpq_compile.types import Candidate

# What each producer is divided by, [N], by its node's name; what is missing counts as 1.
Factors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """Seams that stand or fall together, and the factors that are tried on them."""

    seams: tuple[Seam, ...]
    tried: tuple[Factors, ...]

    def columns(self, node: str, factors: Factors) -> Tensor | None:
        """Return the factor of each input channel of a reader, [C]; None where all are 1."""
        found = [
            column_factors(reader, factors[seam.producer].where(seam.free, torch.ones(())))
            for seam in self.seams
            for reader in seam.readers
            if reader.node == node and seam.producer in factors
        ]
        return torch.stack(found).prod(0) if found else None


@dataclass
class Magnitude:
    """Of a site's input by channel: the largest magnitude and the sum of all, float64 [C]."""

    peak: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    total: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    count: int = 0

    def add(self, values: Tensor) -> None:
        """Add values, [C, count]."""
        self.peak = torch.maximum(self.peak, values.abs().amax(1).double())
        self.total = self.total + values.abs().sum(1, dtype=torch.float64)
        self.count += values.shape[1]

    @property
    def mean(self) -> Tensor:
        """The mean magnitude, float64 [C]."""
        return self.total / max(self.count, 1)


class InputMagnitudes(fx.Interpreter):
    """Runs the float graph and keeps the magnitudes of what the readers of seams read."""

    def __init__(self, network: Network, seams: Sequence[Seam]) -> None:
        super().__init__(network.module)
        self._site_of = network.site_of
        names = {reader.node for seam in seams for reader in seam.readers}
        self.found = {name: Magnitude() for name in names}

    def run_node(self, node: fx.Node) -> object:
        if node.name in self.found:
            x: Tensor = self.env[node.args[0]]
            if not bool(x.isfinite().all()):
                raise CalibrationError(
                    "the input of a site is not finite",
                    where=self._site_of[node.name].id,
                    expected="finite numbers on the calibration data",
                    found=f"{int((~x.isfinite()).sum())} NaN or infinite values",
                    remedy="look for samples, or for a layer before it, that overflow in float",
                )
            self.found[node.name].add(x.movedim(channel_axis(node), 0).flatten(1))
        return super().run_node(node)


class TrialErrors(fx.Interpreter):
    """Runs the float graph; at each reader, tries what is on trial, alone, at several candidates.

    ``errors`` holds one float64 [tried, candidates] a trial: the squared error of the readers'
    outputs by channel relative to its power, the mean over channels, summed over readers. Powers of
    rows and the factors of other seams drop out of it, so each seam is judged by itself.
    """

    def __init__(
        self,
        network: Network,
        trials: Sequence[Trial],
        candidates: Sequence[Candidate],
        observer: str,
    ) -> None:
        super().__init__(network.module)
        self._candidates, self._observer = candidates, observer
        self._trials: dict[str, list[int]] = {}
        for index, trial in enumerate(trials):
            for name in {reader.node for seam in trial.seams for reader in seam.readers}:
                self._trials.setdefault(name, []).append(index)
        self._all = trials
        self.errors = [
            torch.zeros(len(trial.tried), len(candidates), dtype=torch.float64) for trial in trials
        ]

    def run_node(self, node: fx.Node) -> object:
        for index in self._trials.get(node.name, []):
            self.errors[index] += self._errors(node, self._all[index])
        return super().run_node(node)

    def _errors(self, node: fx.Node, trial: Trial) -> Tensor:
        x, weight = self.env[node.args[0]], self.env[node.args[1]]
        exact = _plain(node, x, weight)
        power = exact.square().mean(1)
        alive = power > 0
        rows = []
        for factors in trial.tried:
            columns = trial.columns(node.name, factors)
            moved = _moved(node, x, weight, columns)
            found = [_plain(node, *self._rounded(c, *moved)) for c in self._candidates]
            noise = [(values - exact).square().mean(1)[alive] / power[alive] for values in found]
            rows.append(torch.stack([ratio.double().sum() / len(power) for ratio in noise]))
        return torch.stack(rows)

    def _rounded(self, candidate: Candidate, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        if candidate.activation_bits <= 8:
            histogram = Histogram()
            histogram.observe(x)
            bits = candidate.activation_bits
            x = fake_quantize(x, activation_qparams(histogram, bits, self._observer))
        return x, quantize_weight(weight, weight_spec(candidate)).dequantize()


def _moved(
    node: fx.Node, x: Tensor, weight: Tensor, columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a site's input and weight with factors moved from the one to the other."""
    if columns is None:
        return x, weight
    spread = [1] * x.dim()
    spread[channel_axis(node)] = -1
    scale = columns.float()
    return x / scale.reshape(spread), weight * by_column(scale, weight)


def _plain(node: fx.Node, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a site computes before bias, residual and clamp, float32 [N, values]."""
    if is_call(node, ops.site_linear):
        return ops.site_linear(x, weight, None, None).movedim(-1, 0).flatten(1)
    found = ops.site_conv2d(x, weight, None, None, *node.args[4:9])
    return found.transpose(0, 1).flatten(1)

"""Second moments of a site's inputs and of the outputs that it should have."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, fx

from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.quant.reference import stuff_and_pad

# Values of an output channel that the moments are taken of: this many, or so many for each input.
_VALUES, _VALUES_AN_INPUT = 16384, 8


@dataclass
class Moments:
    """Sums over positions of inputs x [G, K], targets t [G, n] and their products, float64.

    G is the number of groups of the convolution, K the inputs of an output, n the outputs of a
    group; ``count`` positions are of ``samples`` samples. Positions may have weights, whose sum
    is ``weight`` and the sum of their squares ``weight_squares``.
    """

    count: int = 0
    samples: int = 0
    weight: float = 0.0
    weight_squares: float = 0.0
    inputs: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    targets: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    crosses: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(
        self, inputs: Tensor, targets: Tensor, samples: int, weights: Tensor | None = None
    ) -> None:
        """Add positions of some samples.

        Args:
            inputs: float32 [G, K, T].
            targets: float32 [G, n, T].
            samples: How many they are of.
            weights: What each position counts, float32 [T]; None for one.
        """
        self.count += inputs.shape[-1]
        self.samples += min(samples, inputs.shape[-1])
        weighted = inputs if weights is None else inputs * weights
        weights = torch.ones(inputs.shape[-1]) if weights is None else weights
        self.weight += float(weights.sum(dtype=torch.float64))
        self.weight_squares += float(weights.double().square().sum())
        self.inputs = self.inputs + weighted.sum(-1, dtype=torch.float64)
        self.targets = self.targets + (targets * weights).sum(-1, dtype=torch.float64)
        self.squares = self.squares + (weighted @ inputs.mT).double()
        self.crosses = self.crosses + (targets @ weighted.mT).double()

    @property
    def independent(self) -> float:
        """How many draws the positions are worth."""
        return worth(self.samples, self.weight, self.weight_squares)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the means of inputs and targets."""
        return self.inputs / self.weight, self.targets / self.weight

    def centred(self, about_mean: bool) -> tuple[Tensor, Tensor]:
        """Return E[x xᵀ] [G, K, K] and E[t xᵀ] [G, n, K], about the means or about zero."""
        squares, crosses = self.squares / self.weight, self.crosses / self.weight
        if not about_mean:
            return squares, crosses
        x, t = self.means()
        return squares - x[..., None] * x[:, None], crosses - t[..., None] * x[:, None]


@dataclass
class Pool:
    """Moments of the sites that multiply by one weight, added up as they come.

    Each site's are about its own means, or about zero. They see the same samples: they add
    positions, not samples.
    """

    count: int = 0
    samples: int = 0
    weight: float = 0.0
    weight_squares: float = 0.0
    squares: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    crosses: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, moments: Moments, about_mean: bool) -> None:
        """Add the moments of one site."""
        squares, crosses = moments.centred(about_mean)
        self.squares = self.squares + moments.weight * squares
        self.crosses = self.crosses + moments.weight * crosses
        self.count += moments.count
        self.samples = max(self.samples, moments.samples)
        self.weight += moments.weight
        self.weight_squares += moments.weight_squares

    def means(self) -> tuple[Tensor, Tensor]:
        """Return E[x xᵀ] [G, K, K] and E[t xᵀ] [G, n, K]."""
        return self.squares / self.weight, self.crosses / self.weight

    @property
    def independent(self) -> float:
        """How many draws the positions are worth."""
        return worth(self.samples, self.weight, self.weight_squares)


def worth(samples: int, weight: float, weight_squares: float) -> float:
    """Return how many independent draws positions are worth.

    Those of one sample resemble each other: a mean between the number of samples and that of
    positions is taken [derived]. Positions of unlike weights are worth as many of like ones as have
    the same variance of a mean (Kish).
    """
    return float(samples) ** 0.25 * (weight**2 / weight_squares) ** 0.75


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads what a site's outputs depend on, at chosen positions.

    Positions number the rows of a linear layer, and the cells of a convolution's output, by row
    and column, the same ones in each sample of a batch.

    Args:
        node: The site.
        weight: Its float weight [N, ...].
    """

    node: fx.Node
    weight: Tensor

    @property
    def linear(self) -> bool:
        """Tell a linear layer from a convolution."""
        return is_call(self.node, ops.site_linear)

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return 1 if self.linear else int(self.node.args[7])

    @property
    def rows(self) -> Tensor:
        """The float weight, [G, n, K]."""
        return self.weight.flatten(1).unflatten(0, (self.groups, -1))

    def count(self, y_shape: tuple[int, ...]) -> tuple[int, int]:
        """Return how many samples and positions an output of that shape has."""
        if self.linear:
            return 1, prod(y_shape[:-1])
        return y_shape[0], prod(y_shape[2:])

    def inputs(self, x: Tensor, y_shape: tuple[int, ...], positions: Tensor) -> Tensor:
        """Return what the outputs at ``positions`` read, float32 [G, K, values]."""
        if self.linear:
            return x.reshape(-1, x.shape[-1])[positions].T[None]
        stride, padding, dilation, groups, input_dilation = self.node.args[4:9]
        spread = stuff_and_pad(x, padding, input_dilation, 0.0)
        width = spread.shape[-1]
        taps = [
            ky * dilation[0] * width + kx * dilation[1]
            for ky in range(self.weight.shape[2])
            for kx in range(self.weight.shape[3])
        ]
        row, column = positions // y_shape[3], positions % y_shape[3]
        corner = row * stride[0] * width + column * stride[1]
        cells = torch.tensor(taps)[:, None] + corner[None, :]
        found = spread.flatten(2)[:, :, cells.flatten()]
        found = found.unflatten(2, cells.shape).unflatten(1, (groups, -1))
        # [B, G, C/G, taps, P] → [G, C/G · taps, B · P]
        return found.permute(1, 2, 3, 0, 4).flatten(3).flatten(1, 2)

    def outputs(self, y: Tensor, positions: Tensor) -> Tensor:
        """Return outputs at ``positions``, float32 [G, n, values]."""
        if self.linear:
            return y.reshape(-1, y.shape[-1])[positions].T[None]
        found = y.flatten(2)[:, :, positions].unflatten(1, (self.groups, -1))
        return found.permute(1, 2, 0, 3).flatten(2)


class Positions:
    """Draws positions of a site's outputs, as many of each batch as tell its moments.

    Args:
        reader: The site.
        batches: How many batches there are.
        wanted: How many, where not those.
    """

    def __init__(self, reader: Reader, batches: int, wanted: int | None = None) -> None:
        self._reader, self._batches = reader, batches
        self._wanted = wanted or max(_VALUES, _VALUES_AN_INPUT * reader.rows.shape[-1])
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, y_shape: tuple[int, ...]) -> Tensor:
        """Return positions within the next batch's output, int64."""
        samples, count = self._reader.count(y_shape)
        share = -(-self._wanted // (self._batches * samples))
        return torch.randperm(count, generator=self._generator)[:share]

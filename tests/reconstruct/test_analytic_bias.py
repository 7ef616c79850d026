"""Means that follow from batch norms: against integrals, against data, and what takes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.base import ValueRecorder
from mpq_compile.passes.equalize import equalize
from mpq_compile.passes.network import Network, prepare
from mpq_compile.quant.weights import ChannelFit
from mpq_compile.reconstruct.analytic_bias import Spread, clipped, expected_inputs
from mpq_compile.reconstruct.correction import fit_channels
from mpq_compile.types import Candidate, QSpec

INF = float("inf")


@pytest.mark.parametrize(
    ("lo", "hi"), [(0.0, INF), (0.0, 6.0), (-1.0, 1.0), (-INF, 0.5), (-INF, INF), (2.0, 3.0)]
)
@pytest.mark.parametrize("mean", [-4.0, -0.3, 0.0, 2.5, 20.0])
@pytest.mark.parametrize("std", [1e-9, 0.5, 3.0])
def test_moments_of_a_clipped_normal(lo: float, hi: float, mean: float, std: float) -> None:
    grid = np.linspace(-12, 12, 400_001)
    density = np.exp(-0.5 * grid**2)
    density /= density.sum()
    values = np.clip(mean + std * grid, lo, hi)
    expected = float((density * values).sum())
    variance = float((density * (values - expected) ** 2).sum())
    given = Spread(mean=torch.tensor(mean).double(), variance=torch.tensor(std).double() ** 2)
    found = clipped(given, lo, hi)
    assert float(found.mean) == pytest.approx(expected, abs=1e-5)
    assert float(found.variance) == pytest.approx(variance, abs=1e-4)


class Net(nn.Module):
    """Convolutions with batch norms around a function; a sum; a linear layer behind a mean."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(4, 32, 3, bias=False), nn.BatchNorm2d(32)
        self.conv, self.norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.last, self.fc = nn.Conv2d(32, 8, 1), nn.Linear(32, 5)
        self.function = function

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.function(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.norm(self.conv(x)))
        return self.last(x), self.fc(x.mean((2, 3)))


def settled(function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    """A network whose batch norms have seen just the data that comes with it."""
    torch.manual_seed(0)
    model = Net(function).train()
    for norm in (model.stem_norm, model.norm):
        norm.momentum = None
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -1.0, 1.5)
    x = torch.randn(96, 4, 8, 8)
    with torch.no_grad():
        model(x)
    return model.eval(), x


def means(network: Network, x: Tensor) -> dict[str, Tensor]:
    """Return the mean input of each site by channel, over data."""
    recorder = ValueRecorder(network.module, lambda _, value: value)
    recorder.run(x)
    inputs = {s.id: network.node(network.node_of[s.id]).args[0].name for s in network.sites}
    axes = {True: (0, 2, 3), False: (0,)}
    values = {site: recorder.kept[name] for site, name in inputs.items()}
    return {site: value.mean(axes[value.dim() == 4]) for site, value in values.items()}


@pytest.mark.parametrize(
    "function", [F.relu, F.relu6, F.hardswish, F.silu, F.gelu, lambda x: F.leaky_relu(x, 0.1)]
)
def test_expected_inputs_are_those_of_data(function) -> None:
    model, x = settled(function)
    network = prepare(capture(model, x[:2]))
    found, exact = expected_inputs(network), means(network, x)
    assert list(found) == [site.id for site in network.sites[1:]]
    for site, expected in found.items():
        mean = expected.mean((0, 2, 3)) if expected.dim() == 4 else expected.mean(0)
        # Sums of random inputs are nearly normal: the mean is known to a few percent.
        assert (mean - exact[site]).abs().max() < 0.12 * exact[site].abs().max()


def test_expected_inputs_follow_scales() -> None:
    model, x = settled(F.relu)
    network = prepare(
        capture(nn.Sequential(model.stem, model.stem_norm, nn.ReLU(), model.last), x[:2])
    )
    found = equalize(network)
    (site,) = expected_inputs(network)
    before, after = (expected_inputs(n)[site].mean((0, 2, 3)) for n in (network, found))
    ratio = found.weight(site).double() / network.weight(site).double()
    assert (ratio.mean((0, 2, 3)) - 1).abs().max() > 0.1
    assert torch.allclose(before / after, ratio.mean((0, 2, 3)), rtol=1e-5)


def fits(network: Network, x: Tensor, correction: str) -> dict[tuple[str, QSpec], ChannelFit]:
    batches = read_batches([x], network)
    calibration = calibrate(network, batches)
    choices = {site.id: ["w3a8", "w4a8", "w8a8"] for site in network.sites}
    fit_channels(network, calibration, batches, choices, correction)
    return calibration.fits


def test_the_shift_is_what_rounding_takes_from_the_mean() -> None:
    """In a linear layer: (W − Ŵ) E[x], by hand."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 4)).eval()
    nn.init.uniform_(norm.bias, 0.0, 2.0)
    norm.running_var.fill_(1 - norm.eps)
    network = prepare(capture(model, torch.randn(2, 5)))
    _, last = network.sites
    beta = norm.bias.detach().double()
    std = (1 - norm.eps) ** 0.5
    phi = torch.exp(-0.5 * (beta / std) ** 2) / (2 * torch.pi) ** 0.5
    mean = beta * torch.special.ndtr(beta / std) + std * phi
    rounded = network.rounded(last.id, Candidate.parse("w3a8"))
    fit = fits(network, torch.randn(70, 5), "analytic")[last.id, rounded.spec]
    expected = (network.weight(last.id) - rounded.dequantize()).double() @ mean
    assert torch.allclose(fit.shift.double(), expected, atol=1e-6)
    assert (fit.gain == 1).all() and expected.abs().max() > 0.01


def test_padding_counts_as_zeros() -> None:
    """A shift is that of the mean image, borders and all, as data has it."""
    model, x = settled(F.relu)
    network = prepare(capture(model, x[:2]))
    analytic, empirical = (fits(network, x, name) for name in ("analytic", "bias"))
    (conv,) = [site.id for site in network.sites if site.path == "conv"]
    spec = next(s for site, s in analytic if site == conv and s.bits == 3)
    a, b = analytic[conv, spec].shift, empirical[conv, spec].shift
    assert (a - b).abs().max() < 0.15 * b.abs().max()


def test_what_batch_norms_do_not_tell_comes_from_data() -> None:
    model, x = settled(F.relu)
    network = prepare(capture(model, x[:2]))
    analytic, empirical = (fits(network, x, name) for name in ("analytic", "bias"))
    assert analytic.keys() == empirical.keys() and len(analytic) == 2 * len(network.sites)
    stem = network.sites[0].id
    for (site, spec), fit in analytic.items():
        same = torch.equal(fit.shift, empirical[site, spec].shift)
        assert same == (site == stem or not fit.shift.any())
        assert (fit.gain == 1).all()


def test_maximum_pooling_and_products_tell_nothing() -> None:
    layers = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.MaxPool2d(2), nn.Conv2d(6, 5, 1)
    network = prepare(capture(nn.Sequential(*layers).eval(), torch.randn(2, 4, 8, 8)))
    assert expected_inputs(network) == {}

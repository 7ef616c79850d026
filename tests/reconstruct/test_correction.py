"""Gain and shift of channels: least squares, what is left alone, what runs is what was fitted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shared_nets
import torch
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.calibrate import calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.errors import PlanError
from mpq_compile.passes.network import Network, prepare
from mpq_compile.passes.rounding import fitted_bias, fitted_weight
from mpq_compile.quant.calibration import Calibration
from mpq_compile.recipe import Recipe
from mpq_compile.reconstruct.correction import CORRECTIONS, fit_channels
from mpq_compile.session import Session
from mpq_compile.types import Candidate

SITES = {
    "convolution": nn.Conv2d(4, 6, 3, padding=1),
    "strided, dilated, grouped": nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(4 * 49, 5)),
    "linear of tokens": nn.Linear(7, 5),
    "without bias": nn.Conv2d(4, 6, 1, bias=False),
}
SAMPLES = 80


def fitted(
    model: nn.Module, candidate: str, correction: str = "affine", samples: int = SAMPLES
) -> tuple[Network, Calibration, Tensor]:
    """Fit one candidate to every site of a model; return the inputs too."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(samples, 4, 7, 7) + 0.7
    network = prepare(capture(model.eval(), x[:2]))
    batches = read_batches([x], network)
    calibration = calibrate(network, batches)
    fit_channels(
        network, calibration, batches, {s.id: candidate for s in network.sites}, correction
    )
    return network, calibration, x


def with_weight(model: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> np.ndarray:
    """Return a layer's outputs with another weight and bias, float64 [N, values]."""
    layer = next(m for m in model.modules() if getattr(m, "weight", None) is not None)
    given = {"weight": weight.reshape(layer.weight.shape)}
    if layer.bias is not None:
        given["bias"] = torch.zeros_like(layer.bias) if bias is None else bias
    before = nn.Flatten()(x) if isinstance(model, nn.Sequential) else x
    with torch.no_grad():
        y = torch.func.functional_call(layer, given, (before,))
    is_image = y.dim() == 4 and not isinstance(layer, nn.Linear)
    y = y.transpose(0, 1).flatten(1) if is_image else y.reshape(-1, y.shape[-1]).T
    return y.double().numpy()


def rounded_of(network: Network, weight: Tensor, layer: nn.Module) -> Tensor:
    """Return a canonical weight in the layout of the layer's own."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return weight
    return weight.flip(2, 3).transpose(0, 1)


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("candidate", ["w2a8", "w4a8"])
def test_least_squares(name: str, candidate: str) -> None:
    """Every channel has the line that numpy's least squares finds over the same values."""
    model = SITES[name]
    network, calibration, x = fitted(model, candidate)
    site, layer = network.sites[0].id, [*model.modules()][-1]
    rounded = network.rounded(site, Candidate.parse(candidate))
    fit = calibration.fits[site, rounded.spec]
    exact = with_weight(model, layer.weight, None, x)
    wrong = with_weight(model, rounded_of(network, rounded.dequantize(), layer), None, x)
    for channel, (y, z) in enumerate(zip(exact, wrong, strict=True)):
        columns = [z, np.ones_like(z)] if layer.bias is not None else [z]
        gain, *shift = np.linalg.lstsq(np.stack(columns, 1), y, rcond=None)[0]
        assert fit.gain[channel] == pytest.approx(np.clip(gain, 0.25, 4.0), rel=1e-4)
        expected = shift[0] if shift else 0.0
        assert fit.shift[channel] == pytest.approx(expected, abs=1e-4 * np.abs(y).max())


@pytest.mark.parametrize("correction", ["affine", "bias"])
def test_means_agree_and_errors_are_less(correction: str) -> None:
    model = SITES["convolution"]
    network, calibration, x = fitted(model, "w3a8", correction)
    site, candidate = network.sites[0].id, Candidate.parse("w3a8")
    exact = with_weight(model, model.weight, model.bias, x)
    plain = with_weight(model, network.rounded(site, candidate).dequantize(), model.bias, x)
    weight = fitted_weight(network, calibration, site, candidate)
    bias = fitted_bias(network, calibration, site, candidate)
    found = with_weight(model, weight.dequantize(), bias, x)
    assert np.allclose(found.mean(1), exact.mean(1), atol=1e-5)
    errors = [np.square(values - exact).mean(1) for values in (found, plain)]
    assert (errors[0] < errors[1]).all()
    gains = calibration.fits[site, weight.spec].gain
    assert bool((gains == 1).all()) == (correction == "bias")
    assert torch.equal(weight.codes, network.rounded(site, candidate).codes)


def test_what_is_left_alone() -> None:
    model = SITES["convolution"]
    for candidate, correction in (
        ("w4a8", "none"),
        *itertools.product(("w8a8", "fp32", "bf16"), ("affine",)),
    ):
        network, calibration, _ = fitted(model, candidate, correction)
        site, parsed = network.sites[0].id, Candidate.parse(candidate)
        assert not calibration.fits
        assert torch.equal(fitted_bias(network, calibration, site, parsed), network.bias(site))


def test_groups_of_a_channel_share_its_gain() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(196, 5))
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 4, 7, 7)
    model = nn.Sequential(nn.Conv2d(4, 8, 2), nn.Flatten(), nn.Linear(8 * 36, 5))
    network = prepare(capture(model.eval(), x[:2]))
    batches = read_batches([x], network)
    calibration = calibrate(network, batches)
    site, candidate = network.sites[1].id, Candidate.parse("w3a8g32")
    fit_channels(network, calibration, batches, {site: candidate.name})
    plain, found = (
        network.rounded(site, candidate),
        fitted_weight(network, calibration, site, candidate),
    )
    gain = calibration.fits[site, plain.spec].gain
    assert found.scale.shape == (5, 9)
    assert torch.allclose(found.scale, plain.scale * gain[:, None])


@pytest.mark.parametrize(("samples", "is_fitted"), [(63, False), (64, True)])
def test_few_values_are_not_fitted(samples: int, is_fitted: bool) -> None:
    network, calibration, _ = fitted(SITES["linear"], "w2a8", samples=samples)
    (fit,) = calibration.fits.values()
    assert bool((fit.gain != 1).any()) == bool(fit.shift.any()) == is_fitted


def test_a_channel_without_signal_keeps_its_gain() -> None:
    model = nn.Conv2d(4, 3, 3)
    network, calibration, x = fitted(model, "w4a8")
    with torch.no_grad():
        model.weight[1] = 0.0
    network = prepare(capture(model, x[:2]))
    batches = read_batches([x], network)
    calibration = calibrate(network, batches)
    site = network.sites[0].id
    fit_channels(network, calibration, batches, {site: "w4a8"})
    (fit,) = calibration.fits.values()
    assert fit.gain[1] == 1 and fit.shift[1] == 0
    assert fit.gain.isfinite().all() and (fit.gain != 1).sum() == 2


def test_only_what_is_missing_is_fitted_and_only_the_data_that_is_needed_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 49 values a sample: 335 samples hold what a channel is fitted on.
    network, calibration, x = fitted(SITES["convolution"], "w4a8", samples=480)
    site = network.sites[0].id
    runs: list[int] = []
    plain = torch.fx.Interpreter.run
    monkeypatch.setattr(
        "mpq_compile.reconstruct.correction._Fitting.run",
        lambda self, *inputs: (runs.append(len(inputs[0])), plain(self, *inputs))[1],
    )
    batches = read_batches([x], network)
    fit_channels(network, calibration, batches, {site: ["w4a8", "w4a4", "w8a8"]})
    assert not runs
    before = dict(calibration.fits)
    fit_channels(network, calibration, batches, {site: ["w4a8", "w3a8"]})
    assert 335 <= sum(runs) < 480
    assert len(calibration.fits) == 2 and before.items() <= calibration.fits.items()


def test_an_unknown_correction() -> None:
    x = torch.randn(2, 4, 7, 7)
    with pytest.raises(PlanError, match="unknown correction 'afine'"):
        Session(SITES["convolution"], x, [x], recipe=Recipe(correction="afine"))


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_what_runs_is_what_was_fitted(correction: str) -> None:
    """The device equals the oracle, and the oracle the graph with quantizers."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    ).eval()
    x = torch.randn(64, 3, 8, 8)
    session = Session(
        model,
        x[:4],
        [x],
        candidates=["w3a8"],
        recipe=Recipe(correction=correction, rounding="nearest"),
    )
    assignment = {site.id: "w3a8" for site in session.network.sites}
    plan = session.bare_plan(assignment)
    network = session.build(plan)
    assert torch.equal(network(x[:4]), network.reference(x[:4]))
    session.graph.assign(assignment)
    simulated = session.graph.module(x)[0]
    oracle = torch.cat([network.reference(part) for part in x.split(4)])
    step = 2 * (oracle.max() - oracle.min()) / 255
    assert (simulated - oracle).abs().max() < 4 * step
    assert network.plan.provenance["correction"] == correction
    assert network.size_bytes == network.plan.predicted.size_bytes


@pytest.mark.skipif(
    not shared_nets.data_folder().is_dir(),
    reason=f"no networks in {shared_nets.data_folder()} (set MPQ_DATA)",
)
def test_a_real_network_at_three_bits() -> None:
    net = shared_nets.load_net("resnet20", 300)
    right = {}
    for correction in CORRECTIONS:
        session = Session(
            net.model,
            net.example,
            [net.calibration],
            target="bit_serial",
            candidates=["w3a8"],
            recipe=Recipe(correction=correction),
        )
        session.graph.assign({site.id: "w3a8" for site in session.network.sites})
        with torch.no_grad():
            scores = session.graph.module(net.images)[0]
        right[correction] = float((scores.argmax(1) == net.labels).double().mean())
    assert right["affine"] > 0.8 > right["none"] + 0.1


def test_plans_take_it_by_name() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 4, 3), torch.randn(32, 3, 8, 8) + 0.5
    losses = {
        name: mpq.plan(
            model.eval(),
            x[:1],
            [x],
            target="bit_serial",
            candidates=["w2a8"],
            correction=name,
        ).loss
        for name in CORRECTIONS
    }
    assert losses["affine"] < losses["bias"] < losses["none"]

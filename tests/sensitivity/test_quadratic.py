"""Taylor, Fisher and Gauss-Newton against autograd, true losses and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from metric_nets import Chain, Setting, setting
from torch import Tensor, nn

from mpq_compile.errors import CalibrationError
from mpq_compile.registry import METRICS
from mpq_compile.sensitivity.base import QuantizedGraph
from mpq_compile.sensitivity.fisher import FisherMetric
from mpq_compile.sensitivity.gauss_newton import GaussNewtonMetric
from mpq_compile.sensitivity.kl import KlMetric
from mpq_compile.sensitivity.taylor import TaylorMetric

NAMES = ("w8a8", "w5a8", "w3a8")


def chain(classes: int = 4, samples: int = 40) -> Setting:
    torch.manual_seed(3)
    x = torch.randn(samples, 5)
    return setting(Chain(classes), (x,), torch.randint(0, classes, (samples,)))


def log_p(graph: QuantizedGraph, x: Tensor) -> Tensor:
    with torch.no_grad():
        return graph.module(x)[0].double().log_softmax(1)


def test_gauss_newton_of_one_linear_layer_is_its_formula() -> None:
    """½ E Δᵀ (diag p − ppᵀ) Δ, with Δ the change of the logits, is exact there."""
    torch.manual_seed(0)
    x = torch.randn(24, 6)
    one = setting(nn.Sequential(nn.Linear(6, 5)), (x,))
    graph = QuantizedGraph(one.network, one.calibration)
    values = graph.float_values(one.batches[0])
    exact = values["output"][0].double()
    p = exact.softmax(1)
    found = one.measure(GaussNewtonMetric(), NAMES).loss[one.sites[0]]
    for name in NAMES:
        change = graph.outputs_with(values, one.sites[0], name)[0].double() - exact
        form = (p * change.square()).sum(1) - (p * change).sum(1).square()
        assert found[name] == pytest.approx(float(form.mean() / 2), rel=1e-5)


def test_small_errors_change_the_true_loss_as_predicted() -> None:
    """KL ≈ Gauss-Newton; with labels drawn from p, the rise of the cross-entropy is both."""
    net = chain()
    kl, form = (net.measure(m(), NAMES).loss for m in (KlMetric, GaussNewtonMetric))
    for site in net.sites:
        assert form[site]["w8a8"] == pytest.approx(kl[site]["w8a8"], rel=0.02)
        assert form[site]["w5a8"] == pytest.approx(kl[site]["w5a8"], rel=0.3)


def test_taylor_is_the_square_of_the_first_change_of_the_loss() -> None:
    """⟨g, Δz⟩ is the finite difference of each sample's log-likelihood, to first order."""
    net = chain()
    graph = QuantizedGraph(net.network, net.calibration)
    x, y = net.batches[0].inputs[0], net.batches[0].labels
    x = torch.cat([b.inputs[0] for b in net.batches])
    y = torch.cat([b.labels for b in net.batches])
    found = net.measure(TaylorMetric(), ["w8a8"]).loss
    rows = torch.arange(len(y))
    graph.assign({})
    exact = log_p(graph, x)[rows, y]
    for site in net.sites:
        graph.assign({site: "w8a8"})
        change = log_p(graph, x)[rows, y] - exact
        assert found[site]["w8a8"] == pytest.approx(float(change.square().mean() / 2), rel=0.05)


def test_random_projections_estimate_the_exact_form() -> None:
    net = chain(classes=12, samples=200)
    exact = net.measure(GaussNewtonMetric(exact=16), NAMES).loss
    drawn = net.measure(GaussNewtonMetric(exact=0, projections=64), NAMES).loss
    fisher = net.measure(FisherMetric(labels_a_sample=64), NAMES).loss
    for site in net.sites:
        for name in NAMES:
            assert drawn[site][name] == pytest.approx(exact[site][name], rel=0.1)
            assert fisher[site][name] == pytest.approx(exact[site][name], rel=0.1)


def test_the_spread_covers_the_error_of_fewer_samples() -> None:
    """A tenth of the samples errs by a few of its standard errors, and these shrink as 1/√N."""
    net = chain(samples=320)
    few = net.measure(KlMetric(samples=32), ["w4a8"])
    all_of_them = net.measure(KlMetric(samples=320), ["w4a8"])
    for site in net.sites:
        error = abs(few.loss[site]["w4a8"] - all_of_them.loss[site]["w4a8"])
        assert few.spread[site]["w4a8"] > 0 and error < 4 * few.spread[site]["w4a8"]
    shrunk = [all_of_them.spread[s]["w4a8"] / few.spread[s]["w4a8"] for s in net.sites]
    assert np.mean(shrunk) == pytest.approx(0.1**0.5, rel=0.5)


@pytest.mark.parametrize("name", ["fisher", "gauss_newton"])
def test_another_seed_draws_other_numbers(name: str) -> None:
    net = chain(classes=20)
    make = METRICS.load(name)
    tables = [net.measure(make(seed=seed), ["w4a8"]) for seed in (0, 0, 1)]
    assert tables[0] == tables[1]
    assert tables[0].loss != tables[2].loss


def test_labels_of_each_position_are_the_samples_likelihood() -> None:
    """[B, T, K] with labels [B, T]: the mean over positions, all of a sample's in one square."""
    torch.manual_seed(1)
    x, y = torch.randn(12, 3, 5), torch.randint(0, 4, (12, 3))
    net = setting(Chain(), (x,), y)
    graph = QuantizedGraph(net.network, net.calibration)
    found = net.measure(TaylorMetric(), ["w8a8"]).loss

    def likelihood() -> Tensor:
        with torch.no_grad():
            scores = graph.module(x)[0].double().transpose(1, 2)
        return -F.cross_entropy(scores, y, reduction="none").sum(1)

    exact = likelihood()
    for site in net.sites:
        graph.assign({site: "w8a8"})
        expected = float((likelihood() - exact).square().mean() / 2 / 3)
        graph.assign({})
        assert found[site]["w8a8"] == pytest.approx(expected, rel=0.1)


def test_taylor_refuses_a_regression() -> None:
    net = setting(Chain(1), (torch.randn(6, 5),), torch.zeros(6).long())
    with pytest.raises(CalibrationError, match="class scores") as caught:
        net.measure(TaylorMetric(), ["w8a8"])
    assert "kl" in str(caught.value.remedy)


@pytest.mark.parametrize("labels", [torch.zeros(6, 2).long(), torch.full((6,), 4)])
def test_taylor_refuses_labels_that_are_no_classes(labels: Tensor) -> None:
    net = setting(Chain(), (torch.randn(6, 5),), labels)
    with pytest.raises(CalibrationError, match="labels do not match"):
        net.measure(TaylorMetric(), ["w8a8"])

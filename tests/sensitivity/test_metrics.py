"""Metrics: one battery for all, and each against what it is defined as."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from metric_nets import Branches, Setting, setting
from operator_nets import CASES

from mpq_compile.calibrate import Batch
from mpq_compile.errors import CalibrationError
from mpq_compile.passes.network import Network
from mpq_compile.quant.calibration import Calibration
from mpq_compile.registry import METRICS
from mpq_compile.sensitivity.base import QuantizedGraph, pairs
from mpq_compile.sensitivity.sqnr import SqnrMetric, decibels, noise_to_signal
from mpq_compile.shared_tasks import measured_sensitivity
from mpq_compile.types import SensitivityTable

NAMES = ("fp32", "bf16", "w8a8", "w4a8", "w2a8")


@cache
def branches() -> Setting:
    torch.manual_seed(0)
    x, y = torch.randn(48, 3, 6, 6), torch.randint(0, 4, (48,))
    return setting(Branches(), (x,), y)


@cache
def table(name: str) -> SensitivityTable:
    return branches().measure(METRICS.load(name)(), NAMES)


def parts() -> tuple[Network, Calibration, tuple[Batch, ...]]:
    net = branches()
    return net.network, net.calibration, net.batches


@pytest.mark.parametrize("name", METRICS)
def test_every_pair_has_a_loss(name: str) -> None:
    loss = table(name).loss
    # A table tells what it is: auto stands for one of the others.
    assert table(name).metric == ("pairwise" if name == "auto" else name)
    assert list(loss) == branches().sites
    for entries in loss.values():
        assert tuple(entries) == NAMES
        assert all(math.isfinite(value) and value >= 0 for value in entries.values())
        assert entries["fp32"] == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_fewer_bits_lose_more(name: str) -> None:
    totals = {c: sum(row[c] for row in table(name).loss.values()) for c in NAMES}
    assert totals["bf16"] < totals["w4a8"] < totals["w2a8"]
    assert 0 <= totals["w8a8"] < totals["w4a8"]


@pytest.mark.parametrize("name", METRICS)
def test_the_same_input_gives_the_same_table(name: str) -> None:
    network, calibration, batches = parts()
    choices = {site.id: NAMES for site in network.sites}
    assert METRICS.load(name)()(network, calibration, batches, choices) == table(name)


@pytest.mark.parametrize("name", METRICS)
def test_candidates_do_not_influence_each_other(name: str) -> None:
    network, calibration, batches = parts()
    site = network.sites[1].id
    alone = METRICS.load(name)()(network, calibration, batches, {site: ["w4a8"]})
    assert alone.loss[site]["w4a8"] == pytest.approx(table(name).loss[site]["w4a8"], rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_batches_may_be_cut_in_any_way(name: str) -> None:
    """Other batches, and slices of one or two samples because of a small memory."""
    net = branches()
    whole = [torch.cat([b.inputs[0] for b in net.batches])]
    labels = torch.cat([b.labels for b in net.batches])
    spans = (slice(0, 5), slice(5, 30), slice(30, 48))
    cut = [Batch(inputs=(whole[0][s],), labels=labels[s]) for s in spans]
    make = METRICS.load(name)
    options = {} if name.startswith("roundoff") else {"memory_mb": 0.02}
    found = net.measure(make(**options), NAMES, cut)
    for site, entries in table(name).loss.items():
        for candidate, value in entries.items():
            assert found.loss[site][candidate] == pytest.approx(value, rel=1e-3, abs=1e-12)
    for pair, terms in table(name).pairs.items():
        for key, value in terms.items():
            assert found.pairs[pair][key] == pytest.approx(value, rel=1e-2, abs=1e-7)


@pytest.mark.parametrize("name", METRICS)
def test_the_spread_is_known_where_data_is_used(name: str) -> None:
    spread = table(name).spread
    if name.startswith("roundoff"):
        assert not spread
        return
    for site, entries in spread.items():
        assert tuple(entries) == NAMES and entries["fp32"] == 0.0
        assert 0 < entries["w4a8"] < table(name).loss[site]["w4a8"]


@pytest.mark.parametrize(
    "case", ["mobile", "linears", "two_inputs", "attention", "concats", "pools"]
)
@pytest.mark.parametrize("name", [n for n in METRICS if n != "taylor"])
def test_other_networks(name: str, case: str) -> None:
    """Depthwise and residual layers, sequences, several inputs and outputs, concatenation."""
    net = setting(CASES[case].model(), CASES[case].inputs(8))
    loss = net.measure(METRICS.load(name)(), ("fp32", "w8a8", "w3a8")).loss
    assert list(loss) == net.sites
    total = {c: sum(row[c] for row in loss.values()) for c in ("fp32", "w8a8", "w3a8")}
    assert total["fp32"] == 0.0 < total["w8a8"] < total["w3a8"] < math.inf
    assert all(value >= 0 for row in loss.values() for value in row.values())


def test_evaluation_from_a_site_on_equals_the_whole_run() -> None:
    network, calibration, batches = parts()
    graph = QuantizedGraph(network, calibration)
    values = graph.float_values(batches[0])
    for site in network.sites:
        partial = graph.outputs_with(values, site.id, "w4a8")
        whole = graph.module(*batches[0].inputs)  # still switched to this site
        assert torch.equal(partial[0], whole[0])


def test_float_values_are_not_changed_by_what_follows() -> None:
    network, calibration, batches = parts()
    graph = QuantizedGraph(network, calibration)
    values = graph.float_values(batches[0])
    first = network.node_of[network.sites[0].id]
    x = batches[0].inputs[0]
    model_weight = network.weight(network.sites[0].id)
    expected = F.conv2d(x, model_weight, network.bias(network.sites[0].id), padding=1)
    torch.testing.assert_close(values[first], expected)


def test_sqnr_is_the_ratio_of_powers() -> None:
    exact, noisy = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.5]])
    assert noise_to_signal([noisy], [exact]) == pytest.approx(0.25 / 25)
    assert noise_to_signal([exact, noisy], [exact, exact]) == pytest.approx(0.125 / 25)
    assert noise_to_signal([torch.ones(2)], [torch.zeros(2)]) == 1.0
    assert decibels(0.01) == pytest.approx(20) and decibels(0.0) == math.inf


def test_sqnr_by_hand() -> None:
    network, calibration, batches = parts()
    site = network.sites[-1].id
    graph = QuantizedGraph(network, calibration)
    noise = signal = 0.0
    for batch in batches:
        values = graph.float_values(batch)
        exact, found = values["output"][0], graph.outputs_with(values, site, "w2a8")[0]
        noise += float((found - exact).double().square().sum())
        signal += float(exact.double().square().sum())
    loss = SqnrMetric()(network, calibration, batches, {site: ["w2a8"]}).loss
    assert loss[site]["w2a8"] == pytest.approx(noise / signal)


def test_taylor_by_hand() -> None:
    """½ · mean (gₙ · Δzₙ)² with gₙ by autograd through the float network."""
    network, calibration, batches = parts()
    site = network.sites[-1].id
    graph = QuantizedGraph(network, calibration)
    total, count = 0.0, 0
    for batch in batches:
        values = graph.float_values(batch)
        exact = values[network.node_of[site]]
        change = graph.site_output(values, site, "w4a8") - exact
        logits = exact.clone().requires_grad_()
        F.cross_entropy(logits, batch.labels, reduction="sum").backward()
        total += float((logits.grad * change).sum(1).double().square().sum())
        count += len(exact)
    assert table("taylor").loss[site]["w4a8"] == pytest.approx(total / (2 * count), rel=1e-4)


@pytest.mark.parametrize("name", [n for n in METRICS if METRICS.load(n)().needs_labels])
def test_metrics_that_need_labels_say_so(name: str) -> None:
    network, calibration, batches = parts()
    plain = [Batch(inputs=batch.inputs) for batch in batches]
    with pytest.raises(CalibrationError, match="needs labels") as caught:
        METRICS.load(name)()(network, calibration, plain, {network.sites[0].id: ["w8a8"]})
    assert "metric='sqnr'" in str(caught.value.remedy)


def test_pairs_leave_fp32_out() -> None:
    assert list(pairs({"a": ["fp32", "w8a8"], "b": ["bf16"]})) == [("a", "w8a8"), ("b", "bf16")]


@pytest.mark.parametrize(("entry", "found"), [("float('nan')", "nan"), ("None", "None")])
def test_a_loss_that_is_no_number_is_named(tmp_path: Path, entry: str, found: str) -> None:
    """A metric of the user's own, or one that overflowed: the solver never sees such a table."""
    network, calibration, batches = parts()
    file = tmp_path / "mine.py"
    file.write_text(
        "from mpq_compile.types import SensitivityTable\n"
        "class Mine:\n"
        "    def __call__(self, network, calibration, batches, choices):\n"
        "        loss = {site: dict.fromkeys(names, 1.0) for site, names in choices.items()}\n"
        f"        loss[list(loss)[1]]['w4a8'] = {entry}\n"
        "        return SensitivityTable(metric='mine', unit='', loss=loss)\n",
        encoding="utf-8",
    )
    choices = {site.id: NAMES for site in network.sites}
    with pytest.raises(CalibrationError, match="'mine' has no finite loss") as caught:
        measured_sensitivity(f"{file}:Mine", network, calibration, batches, choices)
    assert caught.value.where == f"{network.sites[1].id}, w4a8"
    assert str(caught.value.found) == found

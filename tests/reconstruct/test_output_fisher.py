"""The diagonal Fisher information of tensors inside a network, where it is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import prepare
from mpq_compile.reconstruct.output_fisher import diagonal_fisher
from mpq_compile.sensitivity.base import QuantizedGraph


def graph_of(model: nn.Module, x: Tensor) -> tuple[QuantizedGraph, tuple[Batch, ...]]:
    network = prepare(capture(model.eval(), x[:1]))
    batches = read_batches([x], network)
    return QuantizedGraph(network, calibrate(network, batches)), batches


def inputs(count: int = 256) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(3))


def test_that_of_class_scores_is_p_times_one_minus_p() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4)), inputs(2048)
    graph, batches = graph_of(model, x)
    head = graph.network.node_of[graph.network.sites[0].id]
    found = diagonal_fisher(graph, batches, [head], samples=2048)[head]
    with torch.no_grad():
        p = model(x).softmax(1)
    exact = (p * (1 - p)).mean(0)
    assert torch.allclose(found, exact / exact.mean(), rtol=0.1)


def test_an_element_that_the_output_does_not_read_counts_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        model[2].weight[:, 3] = 0
    graph, batches = graph_of(model, inputs())
    first = graph.network.node_of[graph.network.sites[0].id]
    found = diagonal_fisher(graph, batches, [first])[first]
    assert found[3] == 0 and (found[[0, 1, 2, 4]] > 0).all()
    assert float(found.mean()) == pytest.approx(1.0)


def test_the_same_however_the_data_is_cut() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), inputs(48)
    graph, whole = graph_of(model, x)
    names = [graph.network.node_of[site.id] for site in graph.network.sites]
    pieces = read_batches(list(x.split(5)), graph.network)
    one, two = (diagonal_fisher(graph, b, names) for b in (whole, pieces))
    assert all(torch.allclose(one[name], two[name], rtol=1e-4) for name in names)


def test_a_regression_minds_all_its_values_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    x = torch.randn(512, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    graph, batches = graph_of(model, x)
    name = graph.network.node_of[graph.network.sites[0].id]
    found = diagonal_fisher(graph, batches, [name], samples=512)[name]
    assert torch.allclose(found, torch.ones(3, 2, 2), atol=0.2)

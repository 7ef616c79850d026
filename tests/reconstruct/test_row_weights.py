"""What each row of a linear layer counts, where it is known, and what it does to codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpq_compile.calibrate import Batch, calibrate, read_batches
from mpq_compile.capture import capture
from mpq_compile.passes.network import prepare
from mpq_compile.reconstruct import gptq, output_fisher
from mpq_compile.reconstruct.moments import Moments
from mpq_compile.reconstruct.output_fisher import row_fisher
from mpq_compile.reconstruct.rounding import with_rounding
from mpq_compile.sensitivity.base import QuantizedGraph

TOKENS, PADDING = 12, 0


class Pooled(nn.Module):
    """Tokens → the mean over what is no padding; what padding is mapped to has its own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.inner, self.head = nn.Linear(16, 24), nn.Linear(24, 6)
        with torch.no_grad():
            self.embed.weight[PADDING] *= 8

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != PADDING).float().unsqueeze(-1)
        hidden = self.head(torch.relu(self.inner(self.embed(ids))))
        return (hidden * mask).sum(1) / mask.sum(1)


class Averaged(nn.Module):
    """A convolution whose positions are averaged, and a linear layer with a row a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 5, 3), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def sentences(count: int = 64) -> Tensor:
    """Return token ids [count, TOKENS], each filled up with padding behind 2 to 8 tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 40, (count, TOKENS), generator=generator)
    lengths = torch.randint(2, 9, (count, 1), generator=generator)
    return torch.where(torch.arange(TOKENS) < lengths, ids, PADDING)


def graph_of(model: nn.Module, data: list[Tensor]) -> tuple[QuantizedGraph, tuple[Batch, ...]]:
    network = prepare(capture(model.eval(), data[0][:1]))
    batches = read_batches(list(data), network)
    return QuantizedGraph(network, calibrate(network, batches)), batches


def sites(graph: QuantizedGraph) -> list[str]:
    return [site.id for site in graph.network.sites if site.op != "embedding"]


def test_weights_are_as_good_as_repetitions() -> None:
    torch.manual_seed(0)
    x, t, often = torch.randn(1, 3, 9), torch.randn(1, 2, 9), torch.randint(0, 4, (9,))
    weighted, repeated = Moments(), Moments()
    weighted.add(x, t, 9, often.float())
    repeated.add(x.repeat_interleave(often, 2), t.repeat_interleave(often, 2), 9)
    for about_mean in (False, True):
        pairs = zip(weighted.centred(about_mean), repeated.centred(about_mean), strict=True)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    assert weighted.independent < repeated.independent


def test_alike_weights_change_nothing() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(1, 3, 9), torch.randn(1, 2, 9)
    plain, scaled = Moments(), Moments()
    plain.add(x, t, 9)
    scaled.add(x, t, 9, torch.full((9,), 0.5))
    assert scaled.independent == pytest.approx(plain.independent)
    pairs = zip(plain.centred(True), scaled.centred(True), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_what_is_masked_counts_nothing_and_samples_count_alike() -> None:
    torch.manual_seed(0)
    ids = sentences()
    graph, batches = graph_of(Pooled(), list(ids.split(24)))
    found = row_fisher(graph, batches, sites(graph))
    assert set(found) == set(sites(graph))
    for parts in found.values():
        assert [len(part) for part in parts] == [TOKENS * n for n in (24, 24, 16)]
        rows = torch.cat(parts).reshape(len(ids), TOKENS)
        assert torch.equal(rows == 0, ids == PADDING)
        assert torch.allclose(rows.mean(1), torch.ones(len(ids)))


def test_convolutions_and_single_rows_have_no_weights() -> None:
    torch.manual_seed(0)
    graph, batches = graph_of(Averaged(), [torch.randn(20, 3, 7, 6)])
    assert row_fisher(graph, batches, sites(graph)) == {}


def test_the_same_however_the_data_is_cut() -> None:
    torch.manual_seed(0)
    ids, model = sentences(), Pooled()
    found = []
    for data in ([ids], list(ids.split(5))):
        graph, batches = graph_of(model, data)
        weights = row_fisher(graph, batches, sites(graph))
        found.append(torch.cat([part for name in sites(graph) for part in weights[name]]))
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)


def test_an_output_that_tells_nothing_leaves_all_rows_alike() -> None:
    class Chosen(Pooled):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids).argmax(1)

    torch.manual_seed(0)
    graph, batches = graph_of(Chosen(), [sentences()])
    assert row_fisher(graph, batches, sites(graph)) == {}
    assignment = dict.fromkeys(sites(graph), "w3a8") | {"embed:embedding#0": "w8a8"}
    calibration = calibrate(graph.network, batches)
    found = with_rounding(graph.network, calibration, batches, assignment, "gptq")
    assert len(found.weights) == 2


def test_a_slope_that_is_not_finite_weighs_nothing() -> None:
    """The root of a difference that is zero for one token has an infinite slope there."""

    class Rooted(Pooled):
        def forward(self, ids: Tensor) -> Tensor:
            hidden = self.head(torch.relu(self.inner(self.embed(ids))))
            return (hidden - hidden.amin(1, keepdim=True)).sqrt().mean(1)

    torch.manual_seed(0)
    graph, batches = graph_of(Rooted(), [sentences()])
    found = row_fisher(graph, batches, sites(graph))
    rows = torch.cat([torch.cat(parts).reshape(-1, TOKENS) for parts in found.values()])
    assert (rows == 1).all(1).any() and torch.allclose(rows.mean(1), torch.ones(len(rows)))


def test_a_batch_that_cannot_be_cut_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(Pooled):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids.reshape(8, TOKENS))

    torch.manual_seed(0)
    network = prepare(capture(Fixed().eval(), sentences(8)))
    assert not network.captured.dynamic_batch
    batches = read_batches(list(sentences().split(8)), network)
    graph = QuantizedGraph(network, calibrate(network, batches))
    assert set(row_fisher(graph, batches, sites(graph))) == set(sites(graph))
    monkeypatch.setattr(output_fisher, "_MOST_MB", 1e-3)
    assert row_fisher(graph, batches, sites(graph)) == {}


def test_codes_are_those_of_what_is_not_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding of great values no longer decides how the weights of the others are rounded."""
    torch.manual_seed(0)
    model, ids, unseen = Pooled().eval(), sentences(256), sentences(512)[256:]
    graph, batches = graph_of(model, [ids])
    network = graph.network
    assignment = {s.id: "w8a8" if s.op == "embedding" else "w2a8" for s in network.sites}
    noise = []
    for weights in (row_fisher, lambda *_: {}):
        monkeypatch.setattr(gptq, "row_fisher", weights)
        found = with_rounding(network, graph.calibration, batches, assignment, "gptq")
        oracle = QuantizedGraph(network, found)
        oracle.assign(assignment)
        with torch.no_grad():
            noise.append(float((oracle.module(unseen)[0] - model(unseen)).square().mean()))
    assert noise[0] < 0.8 * noise[1]

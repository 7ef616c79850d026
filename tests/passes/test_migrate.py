"""Scales that move into weights: the function stays, errors fall, or nothing moves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graphs import assert_same, prepared
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.errors import CalibrationError, PlanError
from mpq_compile.passes.balance import MIGRATIONS, balanced
from mpq_compile.passes.migrate import METHODS, best_of, connected, migrate
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import rescale
from mpq_compile.passes.seams import find_seams
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

WIDTH = 16


class Block(nn.Module):
    """A transformer's block: norm, attention, norm, gated layers; norms with or without scales."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm, **options: bool) -> None:
        super().__init__()
        self.first, self.second = (norm(WIDTH, **options) for _ in range(2))
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, 32, bias=False), nn.Linear(WIDTH, 32)
        self.down = nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        q, k, v = (f(y).unflatten(-1, (4, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def tokens(samples: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(samples, 8, WIDTH, generator=torch.Generator().manual_seed(seed))


def outlying(norm: type[nn.Module] = nn.LayerNorm, **options: bool) -> Block:
    """A block two of whose channels are far larger behind each norm than the others."""
    torch.manual_seed(0)
    model = Block(norm, **options)
    with torch.no_grad():
        for layer in (model.first, model.second):
            if layer.weight is not None:
                layer.weight[3:5] *= 50.0
        model.v.weight[7] *= 30.0
        model.out.weight[:, 7] /= 30.0
    return model.eval()


def noise_of(recipe: Recipe, model: nn.Module, x: Tensor, candidate: str) -> float:
    """Return the noise of the outputs as a share of their power, all sites at one candidate."""
    session = Session(model, x[:1], [x], target="bit_serial", recipe=recipe)
    graph = session.graph
    graph.assign({site.id: candidate for site in session.network.sites})
    with torch.no_grad():
        found, exact = graph.module(x)[0], model(x)
    return float((found - exact).square().sum() / exact.square().sum())


def all_paths(network: Network) -> list[set[str]]:
    paths = {network.node_of[site.id]: site.path for site in network.sites}
    return [{paths[reader.node] for reader in seam.readers} for seam in find_seams(network)]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_seams_of_a_transformer(norm: type[nn.Module]) -> None:
    network = prepared(outlying(norm), tokens(2))
    assert all_paths(network) == [{"q", "k", "v"}, {"out"}, {"gate", "up"}, {"down"}]


def test_a_norm_without_scales_is_left_alone() -> None:
    model = outlying(elementwise_affine=False)
    network = prepared(model, tokens(2))
    assert all_paths(network) == [{"out"}, {"down"}]
    found = balanced(network, lambda: [(tokens(),)], "none", "smoothquant")
    for path in ("q", "k", "v", "gate"):
        (site,) = [site.id for site in network.sites if site.path == path]
        before, after = network.weight(site), found.weight(site)
        rows = before.norm(dim=1) / after.norm(dim=1)  # v may be scaled by row, as a producer
        assert torch.allclose(after * rows[:, None], before, atol=1e-5)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("method", METHODS)
def test_the_function_stays(norm: type[nn.Module], method: str) -> None:
    model = outlying(norm)
    network = prepared(model, tokens(2))
    before = {site.id: network.weight(site.id).clone() for site in network.sites}
    found = balanced(network, lambda: [(tokens(),)], "auto", method)
    assert_same(model, found.module, [tokens(4, seed=1)])
    assert all(torch.equal(network.weight(site), weight) for site, weight in before.items())
    assert any(not torch.equal(found.weight(site), weight) for site, weight in before.items())


@pytest.mark.parametrize(
    ("method", "candidate", "factor"), [("smoothquant", "w8a8", 2.0), ("awq", "w4a16", 1.2)]
)
def test_outliers_cost_less(method: str, candidate: str, factor: float) -> None:
    model, x = outlying(), tokens(64)
    exact = Recipe(correction="none", rounding="nearest", equalize="none")
    moved = Recipe(correction="none", rounding="nearest", equalize="none", migration=method)
    before, after = (noise_of(recipe, model, x, candidate) for recipe in (exact, moved))
    assert after * factor < before


def test_the_scale_is_that_of_the_paper() -> None:
    """With one α on trial, s is (max |x|)^α / (max |w|)^(1 − α), up to one factor for all."""
    network = prepared(outlying(), tokens(2))
    x = tokens()
    seam = find_seams(network)[0]
    method = METHODS["smoothquant"]
    only = type(method)(scale=method.scale, alphas=(0.5,), judged_at=method.judged_at)
    found = migrate(network, [seam], [(x,)], only)
    (q,) = [site.id for site in network.sites if site.path == "q"]
    factors = (found.weight(q) / network.weight(q)).mean(0)
    y = F.layer_norm(
        x, (WIDTH,), *(network.module.get_parameter(f"first.{n}") for n in ("weight", "bias"))
    )
    peak = y.abs().amax((0, 1))
    rows = torch.cat([network.weight(site.id).abs() for site in network.sites[:3]])
    column = (rows / (rows * peak).amax(1, keepdim=True)).amax(0)
    expected = (peak / column).sqrt()
    assert torch.allclose(factors / factors[0], expected / expected[0], rtol=1e-4)
    # The largest input stays as large as it was.
    assert (peak / factors).max() == pytest.approx(float(peak.max()), rel=1e-4)


def test_factors_that_disturb_are_undone() -> None:
    """Scales follow from what is computed, not from how its factors happen to be shared out."""
    network = prepared(outlying(), tokens(2))
    seams = find_seams(network)
    generator = torch.Generator().manual_seed(1)
    factors = {
        seam.producer: 10 ** (2 * torch.rand(len(seam.free), generator=generator) - 1)
        for seam in seams
    }
    worse = rescale(network, seams, factors)
    inputs = [(tokens(),)]
    method = METHODS["smoothquant"]
    a, b = (migrate(net, seams, inputs, method) for net in (network, worse))
    for path in ("q", "k", "gate"):
        (site,) = [site.id for site in network.sites if site.path == path]
        ratio = a.weight(site) / b.weight(site)
        assert torch.allclose(ratio, ratio.median().expand_as(ratio), rtol=1e-3)


def test_scales_are_taken_only_where_they_help_everywhere() -> None:
    assert best_of(torch.tensor([[1.0, 3.0], [0.1, 3.1], [0.9, 2.0], [0.5, 2.6]])) == 2
    assert best_of(torch.tensor([[1.0, 1.0], [0.99, 0.5]])) == 0
    assert best_of(torch.tensor([[1.0], [float("nan")], [0.5]])) == 2
    assert best_of(torch.tensor([[0.0], [0.0]])) == 0


def test_even_channels_stay() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH))
    with torch.no_grad():
        nn.init.eye_(model[0].weight)
        model[1].weight[0] = 0.5  # every column's largest
    network = prepared(model, tokens(2))
    found = balanced(network, lambda: [(tokens(64).clamp(-1, 1),)], "auto", "smoothquant")
    for site in network.sites:
        assert torch.equal(found.weight(site.id), network.weight(site.id))


def test_producers_of_one_tensor_share_a_trial() -> None:
    class Fire(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.a, self.b = (
                nn.Conv2d(4, 6, 1),
                nn.Conv2d(6, 5, 1),
                nn.Conv2d(6, 7, 3, padding=1),
            )
            self.last = nn.Conv2d(12, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.squeeze(x))
            return self.last(torch.cat([F.relu(self.a(y)), F.relu(self.b(y))], 1))

    model, x = Fire(), torch.randn(8, 4, 6, 6)
    network = prepared(model, x[:1])
    assert [len(part) for part in connected(find_seams(network))] == [1, 2]
    assert_same(model, balanced(network, lambda: [(x,)], "auto", "none").module, [x])


def test_an_input_that_is_not_finite() -> None:
    network = prepared(outlying(), tokens(2))
    x = tokens()
    x[3] = float("inf")
    with pytest.raises(CalibrationError, match="input of a site is not finite") as raised:
        balanced(network, lambda: [(x,)], "none", "smoothquant")
    assert raised.value.where == network.sites[0].id


def test_unknown_names() -> None:
    with pytest.raises(PlanError, match="unknown migration 'smooth'"):
        Recipe(migration="smooth")
    with pytest.raises(PlanError, match="unknown equalization 'cross'"):
        Recipe(equalize="cross")


@pytest.mark.parametrize("migration", MIGRATIONS)
def test_what_runs_is_what_was_balanced(migration: str) -> None:
    model, x = outlying(), tokens(64)
    net = mpq.assign(
        model, x[:1], [x], "w8a8", equalize="auto", migration=migration, rounding="nearest"
    )
    assert torch.equal(net(x[:1]), net.reference(x[:1]))
    assert net.plan.provenance["migration"] == migration
    with torch.no_grad():
        exact = model(x[:1])
    assert (net(x[:1]) - exact).square().sum() < 0.05 * exact.square().sum()

"""Seams, cross-layer equalization and absorbed biases: the function stays, ranges meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import assert_same, calibrated, prepared
from operator_nets import NetCase
from torch import Tensor, nn

from mpq_compile.passes.absorb_bias import absorb_biases
from mpq_compile.passes.equalize import cross_layer_factors, equalize
from mpq_compile.passes.network import Network
from mpq_compile.passes.rescale import rescale
from mpq_compile.passes.seams import Seam, find_seams
from mpq_compile.types import Candidate

IMAGE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))


def lived_in(model: nn.Module) -> nn.Module:
    return NetCase(make=lambda: model, shapes=()).model()


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, and a sum around them; a head that pools."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.expand, self.expand_norm = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(16)
        self.project, self.project_norm = nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head, self.fc = nn.Conv2d(8, 12, 1), nn.Linear(12, 5)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x))
        y = self.activation(self.expand_norm(self.expand(x)))
        y = self.activation(self.depthwise_norm(self.depthwise(y)))
        x = x + self.project_norm(self.project(y))
        return self.fc(self.activation(self.head(x)).mean((2, 3)))


def net(function: Callable[..., Tensor], **layers: nn.Module) -> nn.Module:
    """A network of layers and a function of them and one input."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict(layers)

        def forward(self, x: Tensor) -> Tensor:
            return function(x, *self.layers.values())

    return Net()


def joints(network: Network) -> dict[str, list[str]]:
    """Return the layers that read each producer, by the layers' names."""
    paths = {node: site.path.removeprefix("layers.") for node, site in network.site_of.items()}
    return {
        paths.get(seam.producer, seam.producer): [paths[reader.node] for reader in seam.readers]
        for seam in find_seams(network)
    }


def disturbed(network: Network, seams: tuple[Seam, ...]) -> Network:
    """Divide all that may be divided by factors from 0.1 to 10."""
    generator = torch.Generator().manual_seed(3)
    factors = {
        seam.producer: 10 ** (2 * torch.rand(len(seam.free), generator=generator) - 1)
        for seam in seams
    }
    return rescale(network, seams, factors)


def weights(network: Network) -> list[Tensor]:
    return [network.weight(site.id) for site in network.sites]


# Where seams are


def test_seams_of_an_inverted_residual() -> None:
    network = prepared(lived_in(InvertedResidual()), IMAGE)
    assert joints(network) == {
        "expand": ["depthwise"],
        "depthwise": ["project"],
        "head": ["fc"],
    }


@pytest.mark.parametrize(
    ("activation", "passes"),
    [
        (lambda x: x, True),
        (F.relu, True),
        (lambda x: F.leaky_relu(x, 0.1), True),
        (lambda x: F.max_pool2d(F.relu(x), 3, stride=2, padding=1), True),
        (lambda x: F.avg_pool2d(x, 2), True),
        (lambda x: F.interpolate(x, scale_factor=2), True),
        (lambda x: x * -3.0, True),
        (lambda x: F.relu(x).flip(3), True),
        (F.relu6, False),
        (F.hardswish, False),
        (F.silu, False),
        (F.gelu, False),
        (torch.sigmoid, False),
        (lambda x: F.relu(x) * x, False),
        (lambda x: x + 1.0, False),
        (lambda x: 1.0 / (x.abs() + 1.0), False),
    ],
)
def test_what_factors_pass_through(activation, passes: bool) -> None:
    model = net(
        lambda x, a, b: b(activation(a(x))), a=nn.Conv2d(4, 6, 3), b=nn.Conv2d(6, 5, 3, padding=1)
    )
    network = prepared(model, IMAGE)
    assert joints(network) == ({"a": ["b"]} if passes else {})
    assert_same(model, disturbed(network, find_seams(network)).module, [IMAGE])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # All readers of a branch are sites: all of them take the factors.
        (
            net(
                lambda x, a, b, c: b(F.relu(a(x))) + c(F.relu(a(x))),
                a=nn.Conv2d(4, 6, 1),
                b=nn.Conv2d(6, 5, 1),
                c=nn.Conv2d(6, 5, 1),
            ),
            {},  # the layer runs twice: its weight is read twice
        ),
        (
            net(
                lambda x, a, b, c: (lambda y: b(y) * c(y))(F.relu(a(x))),
                a=nn.Conv2d(4, 6, 1),
                b=nn.Conv2d(6, 5, 1),
                c=nn.Conv2d(6, 5, 1),
            ),
            {"a": ["b", "c"]},
        ),
        # A branch that ends elsewhere holds all.
        (
            net(
                lambda x, a, b: (lambda y: b(y) + y)(F.relu(a(x))),
                a=nn.Conv2d(4, 6, 1),
                b=nn.Conv2d(6, 6, 1),
            ),
            {},
        ),
        (
            net(
                lambda x, a, b: (lambda y: torch.cat([b(y), y], 1))(a(x)),
                a=nn.Conv2d(4, 6, 1),
                b=nn.Conv2d(6, 6, 1),
            ),
            {},
        ),
        # Parts of a concatenation, each on its own.
        (
            net(
                lambda x, a, b, c: c(torch.cat([F.relu(a(x)), torch.sigmoid(x), b(x)], 1)),
                a=nn.Conv2d(4, 6, 1),
                b=nn.Conv2d(4, 3, 1),
                c=nn.Conv2d(13, 2, 1),
            ),
            {"a": ["c"], "b": ["c"]},
        ),
        # Squeeze and excitation: the gate reads what it gates.
        (
            net(
                lambda x, a, b, c, d: (
                    lambda y: d(y * torch.sigmoid(c(F.relu(b(y.mean((2, 3), keepdim=True))))))
                )(F.relu(a(x))),
                a=nn.Conv2d(4, 6, 1),
                b=nn.Conv2d(6, 3, 1),
                c=nn.Conv2d(3, 6, 1),
                d=nn.Conv2d(6, 5, 1),
            ),
            {"a": ["b", "d"], "b": ["c"]},
        ),
        (
            net(
                lambda x, a, b: b(a(x).flatten(1)),
                a=nn.Conv2d(4, 3, 3, stride=2),
                b=nn.Linear(27, 5),
            ),
            {"a": ["b"]},
        ),
        (
            net(
                lambda x, a, b, c: c(b(a(x))),
                a=nn.Conv2d(4, 6, 3, groups=2),
                b=nn.ConvTranspose2d(6, 9, 3, stride=2, groups=3),
                c=nn.Conv2d(9, 18, 3, groups=9),
            ),
            {"a": ["b"], "b": ["c"]},
        ),
    ],
)
def test_seams_of(model: nn.Module, expected: dict[str, list[str]]) -> None:
    network = prepared(model, IMAGE)
    assert joints(network) == expected
    assert_same(model, disturbed(network, find_seams(network)).module, [IMAGE])
    assert_same(model, equalize(network).module, [IMAGE])


class Attention(nn.Module):
    """Queries, keys and values from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_attention_passes_what_it_weighs() -> None:
    model = Attention()
    network = prepared(model, TOKENS)
    (seam,) = find_seams(network)
    assert not seam.free[:24].any() and seam.free[24:].all()
    assert seam.readers[0].channels.tolist() == list(range(24, 36))
    assert_same(model, disturbed(network, (seam,)).module, [TOKENS])
    assert_same(model, equalize(network).module, [TOKENS])


def test_channels_that_meet_are_held() -> None:
    # Each input channel of the second layer holds two of the first one's, but for the last.
    model = net(
        lambda x, a, b: (lambda y: b(torch.cat([y[:, :6].reshape(-1, 3, 16, 8), two(y)], 1)))(a(x)),
        a=nn.Conv2d(4, 7, 1),
        b=nn.Conv2d(4, 5, 1),
    )

    def two(y: Tensor) -> Tensor:
        return F.interpolate(y[:, 6:], scale_factor=(2.0, 1.0))

    network = prepared(model, IMAGE)
    (seam,) = find_seams(network)
    assert seam.free.tolist() == [False] * 6 + [True]
    assert_same(model, disturbed(network, (seam,)).module, [IMAGE])


def test_a_shared_weight_is_left_alone() -> None:
    inner = nn.Conv2d(4, 4, 1)
    model = net(lambda x, a, b: b(a(F.relu(a(x)))), a=inner, b=nn.Conv2d(4, 5, 1))
    assert joints(prepared(model, IMAGE)) == {}
    model = net(lambda x, a, b: F.conv2d(b(F.relu(a(x))), a.weight), a=inner, b=nn.Conv2d(4, 4, 1))
    assert joints(prepared(model, IMAGE)) == {}


# Equalization


@pytest.mark.parametrize("activation", [F.relu, lambda x: F.leaky_relu(x, 0.2), F.relu6, F.silu])
def test_the_function_stays(activation) -> None:
    model = lived_in(InvertedResidual(activation))
    network = prepared(model, IMAGE)
    before = [weight.clone() for weight in weights(network)]
    found = equalize(network)
    assert_same(model, found.module, [IMAGE])
    assert all(torch.equal(a, b) for a, b in zip(weights(network), before, strict=True))
    exact = activation in (F.relu6, F.silu)
    moved = [not torch.equal(a, b) for a, b in zip(weights(found), before, strict=True)]
    assert any(moved) != exact


def test_two_layers_by_hand() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[4.0, -1.0], [0.5, 0.25], [0.0, 0.0]]))
        first.bias.copy_(torch.tensor([0.0, -2.0, 0.0]))
        second.weight.copy_(torch.tensor([[1.0, 0.5, 3.0], [-0.25, -0.125, 1.0]]))
    network = prepared(nn.Sequential(first, nn.ReLU(), second), torch.randn(2, 2))
    (factors,) = cross_layer_factors(network, find_seams(network)).values()
    # √(4 / 1); √(2 / 0.5), as a bias counts; and no weights, nothing to even out.
    assert factors.tolist() == [2.0, 2.0, 1.0]
    found = equalize(network)
    assert found.weight(network.sites[0].id).tolist() == [[2.0, -0.5], [0.25, 0.125], [0.0, 0.0]]
    assert found.bias(network.sites[0].id).tolist() == [0.0, -1.0, 0.0]
    assert found.weight(network.sites[1].id).tolist() == [[2.0, 1.0, 3.0], [-0.5, -0.25, 1.0]]


def test_ranges_meet_on_both_sides_of_every_seam() -> None:
    network = prepared(lived_in(InvertedResidual()), IMAGE)
    left = cross_layer_factors(equalize(network), find_seams(network))
    for factor in left.values():
        assert (factor - 1).abs().max() < 1e-3


def test_what_was_disturbed_comes_back() -> None:
    network = prepared(lived_in(InvertedResidual()), IMAGE)
    worse = disturbed(network, find_seams(network))
    candidate = Candidate.parse("w4a8")
    project = next(site.id for site in network.sites if site.path == "project")

    def noise(of: Network) -> float:
        weight = of.weight(project)
        error = of.rounded(project, candidate).dequantize() - weight
        return float(error.square().sum() / weight.square().sum())

    assert noise(worse) > 1.5 * noise(network)
    for a, b in zip(weights(equalize(worse)), weights(equalize(network)), strict=True):
        assert torch.allclose(a, b, rtol=1e-2)
    assert noise(equalize(worse)) == pytest.approx(noise(equalize(network)), rel=0.05)


def test_a_channel_that_only_holds_its_bias_is_not_blown_up() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))
    with torch.no_grad():
        model[0].weight[2] = 1e-20
        model[0].bias[2] = 0.5
    network = prepared(model, IMAGE)
    found = equalize(network)
    assert_same(model, found.module, [IMAGE])
    assert found.bias(network.sites[0].id)[2] < 1.0


def test_statistics_follow_their_channels() -> None:
    model, x = lived_in(InvertedResidual()), torch.randn(64, 4, 8, 8)
    network, _ = calibrated(model, x)
    found = disturbed(network, find_seams(network))
    names = [network.node_of[s.id] for s in network.sites if s.path in ("expand", "depthwise")]
    for name in names:
        factor = network.statistics[name].std / found.statistics[name].std
        ratio = network.statistics[name].mean / found.statistics[name].mean
        assert torch.allclose(factor, ratio) and (factor - 1).abs().max() > 0.5


# Biases


class Bottleneck(nn.Module):
    """A linear bottleneck, then a ReLU, and two layers behind them."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.b, self.b_norm = nn.Conv2d(6, 8, 3, padding=padding), nn.BatchNorm2d(8)
        self.c = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b_norm(self.b(self.a_norm(self.a(x))))))


def biased(padding: int = 0) -> nn.Module:
    model = lived_in(Bottleneck(padding))
    with torch.no_grad():
        model.b_norm.bias[:3] = 5.0
    return model


def test_where_nothing_is_clamped_means_move_exactly() -> None:
    model = biased()
    network = prepared(model, IMAGE)
    found = absorb_biases(network, sigmas=float("inf"))
    assert_same(model, found.module, [IMAGE])
    first, second = (network.node_of[site.id] for site in network.sites[:2])
    assert not found.statistics[first].mean.any()
    assert torch.equal(found.statistics[second].mean, network.statistics[second].mean)


def test_behind_a_relu_three_deviations_stay() -> None:
    model = biased()
    network = prepared(model, IMAGE)
    found = absorb_biases(network)
    second = network.node_of[network.sites[1].id]
    before, after = network.statistics[second], found.statistics[second]
    high = before.mean > 3 * before.std
    assert high[:3].all() and high.sum() < len(high)
    assert torch.allclose(after.mean[high], 3 * before.std[high])
    assert torch.equal(after.mean[~high], before.mean[~high])


def test_a_constant_that_never_meets_zero_is_absorbed_exactly() -> None:
    model = biased()
    with torch.no_grad():
        model.b_norm.bias[:3] = 50.0
    network = prepared(model, IMAGE)
    assert_same(model, absorb_biases(network).module, [IMAGE])


def test_padding_stops_a_shift() -> None:
    network = prepared(biased(padding=1), IMAGE)
    found = absorb_biases(network)
    first = network.sites[0].id
    assert torch.equal(found.bias(first), network.bias(first))

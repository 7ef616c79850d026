"""Layers that stand for a few known operators: the same values, and nothing that has no rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from graphs import assert_same, calls, decibels, only, prepared
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.passes import ops
from mpq_compile.passes.einsum import product_of
from mpq_compile.passes.kinds import kinds


class Between(nn.Module):
    """A layer between two convolutions."""

    def __init__(self, layer: nn.Module | Callable[[Tensor], Tensor], channels: int = 6) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.layer = nn.Conv2d(3, 6, 3, padding=1), layer
        self.last = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x)))


class Along(nn.Module):
    """A layer between two 1-D convolutions."""

    def __init__(self, layer: nn.Module, channels: int = 6) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.layer = nn.Conv1d(3, 6, 3), layer
        self.last = nn.Conv1d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x)))


def with_statistics(norm: nn.Module) -> nn.Module:
    torch.manual_seed(5)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5  # type: ignore[assignment]
    return norm


def image_layers() -> dict[str, nn.Module]:
    torch.manual_seed(6)
    return {
        "reflect": Between(nn.ReflectionPad2d((1, 2, 3, 0))),
        "reflect_function": Between(lambda x: F.pad(x, (2, 1, 0, 0), mode="reflect")),
        "replicate": Between(nn.ReplicationPad2d((3, 0, 1, 2))),
        "replicate_function": Between(lambda x: F.pad(x, (1, 1, 2, 0), mode="replicate")),
        "circular": Between(nn.CircularPad2d((1, 2, 0, 3))),
        "circular_convolution": Between(
            nn.Conv2d(6, 6, 3, padding=(2, 1), padding_mode="circular")
        ),
        "reflecting_convolution": Between(nn.Conv2d(6, 6, 5, padding=2, padding_mode="reflect")),
        "constant": Between(lambda x: F.pad(x, (1, 1), mode="constant", value=0.5)),
        "glu": Between(nn.GLU(1), channels=3),
        "prelu": Between(nn.PReLU()),
        "prelu_of_channels": Between(prelu_of_channels()),
        "rrelu": Between(nn.RReLU(0.1, 0.4)),
        "celu": Between(nn.CELU(0.7)),
        "maximum": Between(lambda x: torch.maximum(x, x.flip(2))),
        "minimum": Between(lambda x: torch.minimum(x, x.flip(2))),
        "instance_norm": Between(nn.InstanceNorm2d(6, affine=True)),
        "instance_norm_running": Between(
            with_statistics(nn.InstanceNorm2d(6, track_running_stats=True))
        ),
        "pixel_unshuffle": Between(nn.PixelUnshuffle(2), channels=24),
        "channel_shuffle": Between(nn.ChannelShuffle(3)),
        "movedim": Between(lambda x: x.movedim((1, -1), (3, 1)), channels=8),
        "repeat": Between(lambda x: x.repeat(1, 2, 1, 3), channels=12),
        "repeat_interleave": Between(lambda x: x.repeat_interleave(2, 1), channels=12),
        "square": Between(torch.square),
        "adaptive_max_pool": Between(nn.AdaptiveMaxPool2d((1, 4))),
        "amax": Between(lambda x: x.amax((2, 3), keepdim=True)),
        "amin": Between(lambda x: x.amin(-1, keepdim=True)),
        "max_values": Between(lambda x: torch.max(x, 2, keepdim=True)[0]),
        "min_values": Between(lambda x: x.min(3, keepdim=True).values),
        "std": Between(lambda x: x.std((2, 3), keepdim=True)),
        "std_correction": Between(lambda x: x.std(1, correction=0, keepdim=True), channels=1),
        "var": Between(lambda x: x.var((2, 3), unbiased=False, keepdim=True)),
        "cosine": Between(lambda x: F.cosine_similarity(x, x.flip(1), 2)[:, :, None]),
        "log_sigmoid": Between(nn.LogSigmoid()),
        "shrink": Between(nn.Sequential(nn.Softshrink(0.2), nn.Hardshrink(0.1))),
        "threshold": Between(nn.Threshold(0.1, 0.05)),
        "logs": Between(lambda x: torch.log1p(x.abs()) + torch.log(x.abs() + 1) + torch.erf(x)),
    }


def prelu_of_channels() -> nn.PReLU:
    layer = nn.PReLU(6)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.5, 1.5, 6))
    return layer


def series_layers() -> dict[str, nn.Module]:
    return {
        "reflect": Along(nn.ReflectionPad1d((2, 1))),
        "replicate": Along(nn.ReplicationPad1d((0, 3))),
        "glu": Along(nn.GLU(1), channels=3),
        "instance_norm": Along(nn.InstanceNorm1d(6)),
        "prelu": Along(prelu_of_channels()),
        "adaptive_max_pool": Along(nn.AdaptiveMaxPool1d(5)),
    }


@pytest.mark.parametrize("name", image_layers())
def test_images(name: str) -> None:
    model = image_layers()[name].eval()
    network = prepared(model, torch.randn(2, 3, 8, 8))
    assert_same(model, network.module, (torch.randn(2, 3, 8, 8),))
    kinds(network)  # raises where something has no rule


@pytest.mark.parametrize("name", series_layers())
def test_series(name: str) -> None:
    model = series_layers()[name].eval()
    network = prepared(model, torch.randn(2, 3, 12))
    assert_same(model, network.module, (torch.randn(2, 3, 12),))
    kinds(network)


CODES = (
    "reflect", "replicate", "circular", "prelu_of_channels", "glu", "repeat", "repeat_interleave",
    "channel_shuffle", "adaptive_max_pool", "shrink",
)  # fmt: skip


@pytest.mark.parametrize("name", CODES)
def test_the_batch_is_free_and_the_device_equals_the_oracle(name: str) -> None:
    torch.manual_seed(9)
    model, x = image_layers()[name].eval(), torch.randn(16, 3, 8, 8)
    network = mpq.assign(model, x[:1], [x], "w8a8", rounding="nearest", tuned=False)
    assert network.manifest.dynamic_batch
    found = network(x[:3])
    assert torch.equal(found, network.reference(x[:3]))
    with torch.no_grad():
        assert decibels(found, model(x[:3])) > 25


def test_a_padding_moves_codes() -> None:
    """Nothing between the two convolutions computes: what repeats values is exact."""
    network = prepared(image_layers()["reflect"], torch.randn(1, 3, 8, 8))
    assert set(calls(network.module)) == {"site_conv2d", "slice", "flip", "cat"}


class Points(nn.Module):
    """As PointNet: the greatest over points, of which nobody asks for the place, then a class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(10)
        self.first, self.last = nn.Conv1d(3, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.max(self.first(x).relu(), 2)[0]).argmax(1)


def test_points_have_a_class() -> None:
    torch.manual_seed(11)
    model, x = Points().eval(), torch.randn(64, 3, 12)
    network = mpq.assign(model, x[:1], [x], "w8a8", rounding="nearest", tuned=False)
    with torch.no_grad():
        found, expected = network(x), model(x)
    assert found.dtype == torch.int64
    assert torch.equal(found, network.reference(x))
    assert (found == expected).float().mean() > 0.9


class Sum(nn.Module):
    """Einsum of an input and a parameter, or of two inputs."""

    def __init__(self, equation: str, *shape: int, first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.equation, self.first = equation, first
        self.weight = nn.Parameter(torch.randn(*shape)) if shape else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        other = self.weight if y is None else y
        assert other is not None
        return torch.einsum(self.equation, *((other, x) if self.first else (x, other)))


@pytest.mark.parametrize(
    ("equation", "shape", "first"),
    [
        ("bij,kj->bik", (5, 4), False),
        ("bij,jk->bik", (4, 5), False),
        ("kj,bij->bki", (5, 4), True),
        ("bij,jkl->bikl", (4, 2, 5), False),
        ("bij,ijk", (3, 4, 5), False),
        ("bij,kji->kb", (5, 4, 3), False),
    ],
)
def test_a_product_with_a_parameter_is_a_site(
    equation: str, shape: tuple[int, ...], first: bool
) -> None:
    model, x = Sum(equation, *shape, first=first), torch.randn(2, 3, 4)
    network = prepared(model, x)
    assert only(network.module, ops.site_linear) is not None
    assert network.sites[0].group == "weight"
    assert_same(model, network.module, (torch.randn(2, 3, 4),))
    kinds(network)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,bkj->bik", ((2, 3, 4), (2, 5, 4))),
        ("bhid,bhjd->bhij", ((2, 2, 3, 4), (2, 2, 5, 4))),
        ("bihd,bjhd->bhij", ((2, 3, 2, 4), (2, 5, 2, 4))),
        ("bchw,bcuv->bhwuv", ((2, 3, 2, 4), (2, 3, 5, 2))),
        ("bij,bij->b", ((2, 3, 4), (2, 3, 4))),
        ("bi,bj->bij", ((2, 3), (2, 4))),
        ("bi,bi->bi", ((2, 3), (2, 3))),
        ("ij,jk", ((2, 3), (3, 4))),
    ],
)
def test_a_product_of_two_inputs(equation: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    model, inputs = Sum(equation), [torch.randn(*shape) for shape in shapes]
    module = prepared(Followed(model, equation, inputs), *inputs).module
    assert not calls(module)["einsum"]
    assert_same(Followed(model, equation, inputs), module, inputs)


class Followed(nn.Module):
    """A linear layer behind, since a network needs a site."""

    def __init__(self, layer: nn.Module, equation: str, inputs: list[Tensor]) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.layer = layer
        width = torch.einsum(equation, *inputs).shape[-1]
        self.last = nn.Linear(width, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(self.layer(*inputs))


@pytest.mark.parametrize(
    "equation", ["ii,ij->j", "...i,ij->...j", "ij->ji", "ij,jk,kl->il", "ij,k->j"]
)
def test_other_equations_are_left_alone(equation: str) -> None:
    assert product_of(equation) is None


def test_labels_that_only_one_operand_has_and_the_result_lacks_are_left_alone() -> None:
    assert product_of("ij,jk->k") is None
    assert product_of("ij,jk->ik") is not None

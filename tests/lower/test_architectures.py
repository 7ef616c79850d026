"""Building blocks of vision networks: captured whole, and equal to their oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_equal, decibels
from torch import Tensor, nn

import mpq_compile as mpq
from mpq_compile.capture import capture
from mpq_compile.passes import ops
from mpq_compile.passes.base import is_call
from mpq_compile.passes.kinds import Kind, classify
from mpq_compile.passes.network import Network, prepare


class InvertedResidual(nn.Module):
    """MobileNet-V3: hardswish, squeeze and excitation with hardsigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.spatial = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 24, 5, 1, 2, groups=24)
        self.norm, self.down, self.up = nn.BatchNorm2d(24), nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Conv2d(24, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.spatial(F.hardswish(self.expand(x)))))
        y = y * F.hardsigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y)


class Shuffle(nn.Module):
    """ShuffleNet: halves, and channels of groups interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1, groups=1), nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([F.relu(self.a(left))[:, :4], self.b(right)], 1)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return self.last(y.reshape(batch, channels, height, width))


class Dense(nn.Module):
    """DenseNet: all earlier results joined, a norm before each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return F.avg_pool2d(x, 2)


class Ghost(nn.Module):
    """GhostNet: cheap channels beside true ones, cut, and added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.primary(x))
        y = torch.cat([y, F.relu(self.cheap(y))], 1)[:, :6]
        y += x
        y[:, 1:3] *= 0.5
        return F.relu(y)


class WindowAttention(nn.Module):
    """Swin: windows of a rolled image, with a relative position bias and a mask."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm, self.qkv, self.out = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.table = nn.Parameter(torch.randn(7**2, 2) / 4)
        self.register_buffer("index", torch.randint(7**2, (16, 16)))
        self.register_buffer("mask", torch.where(torch.rand(4, 16, 16) < 0.2, -100.0, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        y = self.norm(x.permute(0, 2, 3, 1))
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        y = y.view(batch, 2, 4, 2, 4, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q * 6**-0.5 @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1)[None]
        if self.shift:
            scores = scores.view(-1, 4, 2, 16, 16) + self.mask[None, :, None]
            scores = scores.view(-1, 2, 16, 16)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, 12)
        y = self.out(y).view(batch, 2, 2, 4, 4, 12).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, 8, 8, 12)
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Depthwise 7×7, layer norm over channels, GELU, layer scale behind a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 30), nn.Linear(30, 12)
        self.scale = nn.Parameter(torch.rand(12) - 0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(self.spatial(x).permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2) * self.scale.reshape(1, -1, 1, 1)


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, and what was there joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up, self.c = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.Conv2d(16, 8, 3, padding=1)
        self.d = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = F.relu(self.b(F.max_pool2d(x, 2)))
        z = F.relu(self.c(torch.cat([self.up(y), x], 1)))
        y = F.interpolate(z[:, :, ::2, ::2], scale_factor=2)
        return self.d(torch.cat([x, y], 1))


class SuperResolution(nn.Module):
    """Pixel shuffle, and the image itself beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
        self.slope = nn.Parameter(torch.tensor([0.7]))

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.b(F.leaky_relu(self.a(x), 0.1)), 2)
        return y * self.slope + F.interpolate(x, scale_factor=2)


class Pooled(nn.Module):
    """PoolFormer: a difference to the mean of the neighbourhood, scaled by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = nn.Conv2d(6, 8, 1), nn.Parameter(torch.rand(8, 1, 1))
        self.offset, self.last = nn.Parameter(torch.randn(8)), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        z = (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y) * self.scale
        z = F.relu(torch.addcmul(z, y, y, value=0.5) + self.offset.view(1, -1, 1, 1))
        return self.last(z)


class Temporal(nn.Module):
    """A temporal network of 1-D layers: causal, strided, grouped, transposed, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(6, 12, 3, padding=2), nn.BatchNorm1d(12)
        self.b = nn.Conv1d(12, 12, 3, padding=4, dilation=2, groups=3)
        self.skip, self.up = nn.Conv1d(6, 12, 1), nn.ConvTranspose1d(12, 8, 4, stride=2, padding=1)
        self.same, self.scale = nn.Conv1d(8, 8, 5, padding="same"), nn.Parameter(torch.rand(8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.flatten(2)
        y = F.relu(self.norm(self.a(x)))[:, :, :-2]
        y = F.gelu(self.b(y)[:, :, :-4]) + self.skip(x)
        z = F.avg_pool1d(y, 3, 2, padding=1)
        y = self.up(F.relu(F.max_pool1d(y, 2))) * self.scale
        y = y + F.interpolate(z, scale_factor=2)[:, :8]
        y = torch.cat([y, self.same(F.pad(y, (1, 1)))[:, :, 1:-1]], 1)[:, 4:12]
        return self.fc(y.mean(-1)), self.fc(y.transpose(1, 2))


class Rolled(nn.Module):
    """Rolls of an image and of rows, over any axes, and a norm behind flattened rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 8, 1), nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.roll(F.relu(self.a(x)), (3, -1, 2), (1, 2, 3)).permute(0, 2, 3, 1)
        y = self.b(torch.roll(y, 1, 2))
        return self.norm(y.flatten(0, 2)).reshape_as(y)


EXACT: dict[str, Callable[[], nn.Module]] = {
    "inverted_residual": InvertedResidual,
    "shuffle": Shuffle,
    "dense": Dense,
    "ghost": Ghost,
    "unet": UNet,
    "super_resolution": SuperResolution,
    "pooled": Pooled,
    "temporal": Temporal,
    "rolled": Rolled,
}
IN_PART_FLOAT: dict[str, Callable[[], nn.Module]] = {
    "windows": lambda: WindowAttention(0),
    "shifted_windows": lambda: WindowAttention(2),
    "convnext": ConvNext,
}
LEAST_DECIBELS = {"w8a8": 25.0, "w4a8": 12.0}


def network_of(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    """Return a network whose norms have seen data, and data."""
    torch.manual_seed(3)
    model = make()
    channels = 12 if isinstance(model, (WindowAttention, ConvNext)) else 6
    x = torch.randn(16, channels, 8, 8)
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


@pytest.mark.parametrize("candidate", LEAST_DECIBELS)
@pytest.mark.parametrize("name", EXACT)
def test_block_equals_its_oracle(name: str, candidate: str) -> None:
    model, x = network_of(EXACT[name])
    net = mpq.assign(model, x[:2], [x], candidate, tuned=False, rounding="nearest")
    expected = net.reference(x[:2])
    assert_equal(net(x[:2]), expected)
    assert decibels(expected, model(x[:2])) > LEAST_DECIBELS[candidate]


@pytest.mark.parametrize("name", IN_PART_FLOAT)
def test_block_with_float_parts_is_near_its_oracle(name: str) -> None:
    model, x = network_of(IN_PART_FLOAT[name])
    net = mpq.assign(model, x[:2], [x], "w8a8", tuned=False)
    expected = net.reference(x[:2])
    # A norm's last bit may round a code to its neighbour.
    assert decibels(net(x[:2]), expected) > 40.0
    assert decibels(expected, model(x[:2])) > LEAST_DECIBELS["w8a8"]


def prepared(name: str) -> Network:
    model, x = network_of({**EXACT, **IN_PART_FLOAT}[name])
    network = prepare(capture(model, x[:2]))
    with torch.no_grad():
        found = network.module(x[:3])
        expected = model(x[:3])
    for a, b in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    return network


@pytest.mark.parametrize("name", EXACT)
def test_nothing_of_a_block_stays_float(name: str) -> None:
    network = prepared(name)
    kinds = {classify(network, node) for node in network.module.graph.nodes}
    assert not kinds & {Kind.FLOAT, Kind.UNSUPPORTED}


@pytest.mark.parametrize("name", ["convnext", "rolled"])
def test_scales_and_norms_fold_through_permutations_and_rows(name: str) -> None:
    graph = prepared(name).module.graph
    assert not any(is_call(node, ops.multiply, ops.channel_affine) for node in graph.nodes)


def test_signals_keep_the_names_and_weights_of_their_layers() -> None:
    sites = {site.id: site.weight_shape for site in prepared("temporal").sites}
    assert sites["a:conv2d#0"] == (12, 6, 1, 3)
    assert sites["up:conv_transpose2d#0"] == (12, 8, 1, 4)

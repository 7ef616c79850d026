"""Small networks that between them hold every operator with a lowering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from recurrent_nets import Carried, Cells, Recurrent
from torch import Tensor, nn
from volume_nets import Clips, Segmenter


@dataclass(frozen=True, kw_only=True)
class NetCase:
    """A network, the shapes of its inputs for one sample, and how its outputs are compared.

    ``exact`` is False where an operator runs in float on the device.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    exact: bool = True

    def model(self) -> nn.Module:
        """Return the network with fixed random weights and lived-in batch norms."""
        torch.manual_seed(7)
        model = self.make().eval()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                _live_in(module)
        return model

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in self.shapes)


def _live_in(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.uniform_(-0.3, 0.3)
    norm.running_var.uniform_(0.5, 2.0)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)


class Convolutions(nn.Module):
    """Strides, paddings, dilations, groups, depthwise, odd channel counts, residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, padding=1)
        self.strided = nn.Conv2d(11, 12, 5, stride=(2, 1), padding=(2, 1), bias=False)
        self.dilated = nn.Conv2d(12, 12, 3, padding=2, dilation=2, padding_mode="zeros")
        self.grouped = nn.Conv2d(12, 18, 3, groups=3, padding="same")
        self.depthwise = nn.Conv2d(18, 18, 3, groups=18, stride=2, padding=1)
        self.multiplied = nn.Conv2d(18, 36, 3, groups=18, padding=1)
        self.even = nn.Conv2d(36, 7, 2, padding="same")
        self.point = nn.Conv2d(7, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.strided(F.pad(x, (1, 0, 0, 2))))
        x = F.relu(x + self.dilated(x))
        x = F.relu(self.depthwise(self.grouped(x)))
        x = F.relu6(self.even(self.multiplied(x)))
        return self.point(x) + x


class Transposed(nn.Module):
    """Transposed convolutions with output padding, groups, dilation and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.odd = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.grouped = nn.ConvTranspose2d(6, 9, (3, 2), stride=(1, 3), groups=3, dilation=(2, 1))
        self.cropped = nn.ConvTranspose2d(9, 4, 3, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.up(x)))
        x = F.relu(self.odd(x))
        return self.cropped(F.relu(self.grouped(x)))


class Norms(nn.Module):
    """Batch norms that fold, and those that cannot: on the input, before a convolution, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 10, 3, padding=1)
        self.folded = nn.BatchNorm2d(10)
        self.second = nn.Conv2d(10, 10, 3, padding=1)
        self.before = nn.BatchNorm2d(10)
        self.plain = nn.BatchNorm2d(10, affine=False)
        self.third = nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5, 6)
        self.one = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.folded(self.conv(self.first(x))))
        y = self.second(x)
        z = F.relu(self.before(y)) + self.plain(y)
        return self.one(self.fc(self.third(z).mean((2, 3))))


class Linears(nn.Module):
    """Linear layers over two and three dimensions, by module, addmm and matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(10, 24)
        self.b = nn.Linear(24, 24, bias=False)
        self.c = nn.Linear(24, 13)
        self.matrix = nn.Parameter(torch.randn(13, 9) / 4)
        self.offset = nn.Parameter(torch.randn(9))
        self.last = nn.Parameter(torch.randn(9, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(x + self.b(x))
        x = self.c(x).mean(1)
        x = torch.addmm(self.offset, x, self.matrix)
        return F.hardtanh(x) @ self.last


class Activations(nn.Module):
    """Every activation between convolutions."""

    FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
        F.relu,
        F.relu6,
        F.hardswish,
        F.hardsigmoid,
        F.silu,
        torch.sigmoid,
        F.gelu,
        lambda x: F.gelu(x, approximate="tanh"),
        torch.tanh,
        F.leaky_relu,
        F.elu,
        F.softplus,
        F.mish,
        torch.abs,
        torch.neg,
        lambda x: x * 0.5 + 1.0,
        lambda x: 1.0 - x,
        lambda x: x / 3,
        lambda x: x**2,
        lambda x: torch.clamp(x, -0.5, 0.75),
        lambda x: torch.clamp(x, min=0.1),
    )

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in self.FUNCTIONS)
        self.last = nn.Conv2d(6 * len(self.FUNCTIONS), 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        functions = zip(self.convs, self.FUNCTIONS, strict=True)
        return self.last(torch.cat([conv(function(x)) for conv, function in functions], 1))


class Attention(nn.Module):
    """A transformer block: layer norm, softmax attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, steps, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, steps, 16))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return torch.log_softmax(self.head(x.mean(1)), -1)


class FusedAttention(nn.Module):
    """``scaled_dot_product_attention`` and group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


class Sums(nn.Module):
    """Additions: of two convolutions, of the input, of a constant, broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(3, 9, 3, padding=1)
        self.c, self.d = nn.Conv2d(9, 9, 1), nn.Conv2d(9, 3, 1)
        self.e = nn.Conv2d(3, 4, 1)
        self.offset = nn.Parameter(torch.randn(1, 9, 1, 1))
        self.map = nn.Parameter(torch.randn(1, 9, 6, 7))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x) + self.b(x))
        y = self.c(y) + self.offset
        y = y + y.mean((2, 3), keepdim=True)
        y = F.relu(y + self.map)
        z = self.d(y + F.silu(y))
        return self.e(F.relu(z) + x)


class Products(nn.Module):
    """Multiplications: gating of the same shape, and squeeze-and-excitation either way round."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(3, 9, 3, padding=1)
        self.down, self.up = nn.Conv2d(9, 4, 1), nn.Conv2d(4, 9, 1)
        self.down2, self.up2 = nn.Linear(9, 4), nn.Linear(4, 9)
        self.last = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) * torch.sigmoid(self.b(x))
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1))))
        y = y * F.hardsigmoid(gate)
        scale = torch.sigmoid(self.up2(F.relu(self.down2(y.mean((2, 3))))))
        y = scale[:, :, None, None] * y
        return self.last(F.relu(y * y))


class Concats(nn.Module):
    """Concatenation over channels, rows and features; of sites, pools and the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(14, 8, 1), nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8, 7), nn.Linear(8, 3)
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(torch.cat([F.relu(self.a(x)), self.b(x), x], 1))
        y = F.relu(torch.cat([y, self.d(F.relu(y))], 2))
        y = torch.cat((y, y.flip(3)), dim=-1)
        v = y.mean((2, 3))
        return self.last(torch.cat([F.relu(self.fc1(v)), self.fc2(v)], -1))


class Pools(nn.Module):
    """Maximum, average and adaptive pooling with every option."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(7, 7, 1) for _ in range(6))
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.stem(x))
        a, b, c, d, e, f = self.convs
        y = a(F.max_pool2d(x, 3, 2, ceil_mode=True))
        z = b(F.max_pool2d(x, 3, 2, padding=1, dilation=2))
        u = c(F.avg_pool2d(y, 2, ceil_mode=True, count_include_pad=False))
        v = d(F.avg_pool2d(x, (3, 2), 2, padding=1, ceil_mode=True))
        w = e(F.avg_pool2d(x, 3, divisor_override=5))
        s = f(F.adaptive_avg_pool2d(x, (3, 4)))
        t = self.fc(F.adaptive_avg_pool2d(F.max_pool2d(v, 2), 1).flatten(1))
        return z, u, w, s, t, x.mean((2, 3), keepdim=True)


class Shapes(nn.Module):
    """Reshapes, permutations, slices, splits and their kin, in both layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.c, self.d = nn.Conv2d(3, 4, 1), nn.Conv2d(6, 8, 1)
        self.e = nn.Linear(8, 6)
        self.f, self.g = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        batch = x.shape[0]
        y = F.relu(self.a(x))
        y = y.view(batch, 2, 6, 6, 8).transpose(1, 2).reshape(batch, 12, 6, 8)  # shuffled
        y = self.b(y)
        left, right = y.chunk(2, 1)
        p, q, r = torch.split(left, [1, 2, 3], 1)
        s = torch.cat([r, q, p], 1)[:, :, ::2, 1:-1:3]
        t = F.pixel_shuffle(y, 2)
        u = self.c(t[:, :, 2:9, 3:])
        w = F.relu(self.d(right[:, :, :-1])).permute(0, 2, 3, 1)
        w = F.relu(self.e(w)).flatten(1, 2)
        m, n = w[:, 0], w[:, -1]
        k = self.f(torch.stack([m, n], 1)).unbind(1)
        return s, u, self.g(k[0]) + k[1], w.transpose(1, 2).unsqueeze(1).squeeze(1)


class Padded(nn.Module):
    """Zero padding that stays an operator of its own, cropping, and option-A shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 9, 3, 2, 1)
        self.c, self.d = nn.Conv2d(9, 5, 1), nn.Conv2d(9, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)  # no ReLU: the zero point is not zero
        y = F.relu(self.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)))
        z = F.pad(y, (1, 2, 0, 1))
        return self.c(z)[:, :, :2, :3] + self.d(F.pad(z, (0, -1, 1, -1)))[:, :, :2, :3]


class Resized(nn.Module):
    """Nearest interpolation by factor, by size, odd sizes, up and down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.a(x)
        z = self.b(self.up(y))
        small = F.interpolate(z, size=(5, 3))
        return (
            self.c(small),
            F.interpolate(F.relu(y), size=(13, 7)),
            F.interpolate(z, scale_factor=(1.7, 0.6)),
        )


class TwoInputs(nn.Module):
    """Two inputs of different shapes, outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(5, 8)
        self.head, self.aux = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.image(image)).mean((2, 3))
        joined = F.relu(x + self.vector(vector))
        return {"logits": self.head(joined), "aux": self.aux(joined)}


class Mobile(nn.Module):
    """An inverted residual block with squeeze-and-excitation, as MobileNet-V3 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 8, 3, stride=2)
        self.expand, self.spatial = _block(8, 24, 1), _block(24, 24, 3, groups=24)
        self.down, self.up = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.spatial(self.expand(x))
        y = y * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y)
        return self.fc(F.dropout(x.mean([2, 3]), training=self.training))


def _block(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.Hardswish())


class Tied(nn.Module):
    """One linear layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.shared(F.relu(self.shared(x)))))


class Edges(nn.Module):
    """Paddings that repeat values, channels and pixels that change places, values repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.mirrored = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.around = nn.Conv2d(6, 6, 3, padding=(2, 1), padding_mode="circular")
        self.repeated = nn.Conv2d(6, 6, 3, padding=1, padding_mode="replicate")
        self.shuffle, self.apart = nn.ChannelShuffle(3), nn.PixelUnshuffle(2)
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.mirrored(x))
        x = self.shuffle(F.relu(self.around(x)))
        y = self.repeated(x).repeat_interleave(2, 2).repeat(1, 1, 1, 2)
        return self.last(self.apart(y)), F.adaptive_max_pool2d(y, (1, 2))


class Gates(nn.Module):
    """Activations that stand for others, or have a table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 8, 1)
        self.slopes, self.third = nn.PReLU(8), nn.Conv2d(8, 6, 1)
        self.fourth = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(x), 1)
        x = self.slopes(self.second(F.celu(x, 0.7)))
        x = F.hardshrink(F.softshrink(self.third(x), 0.05), 0.1)
        return self.fourth(F.logsigmoid(F.threshold(x, 0.1, 0.05)))


class Reductions(nn.Module):
    """Greatest, least and spread over dimensions, and Einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.weight = nn.Parameter(torch.randn(8, 2, 4))
        self.norm = nn.InstanceNorm2d(8, affine=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.first(x))
        summed = torch.einsum("bchw,cde->bhwde", x.relu(), self.weight)
        pooled = x.amax((2, 3)) - x.flatten(2).min(2).values + x.std((2, 3))
        return summed, self.last(torch.maximum(pooled, pooled.flip(1)))


IMAGE = ((3, 9, 10),)
CASES: Mapping[str, NetCase] = {
    "convolutions": NetCase(make=Convolutions, shapes=((3, 15, 14),)),
    "transposed": NetCase(make=Transposed, shapes=((3, 4, 5),)),
    "norms": NetCase(make=Norms, shapes=IMAGE),
    "linears": NetCase(make=Linears, shapes=((4, 10),)),
    "activations": NetCase(make=Activations, shapes=((3, 5, 5),)),
    "attention": NetCase(make=Attention, shapes=((6, 16),), exact=False),
    "fused_attention": NetCase(make=FusedAttention, shapes=((4, 3, 3),), exact=False),
    "sums": NetCase(make=Sums, shapes=((3, 6, 7),), exact=False),
    "products": NetCase(make=Products, shapes=IMAGE),
    "concats": NetCase(make=Concats, shapes=IMAGE),
    "pools": NetCase(make=Pools, shapes=((3, 13, 12),)),
    "shapes": NetCase(make=Shapes, shapes=((3, 6, 8),)),
    "padded": NetCase(make=Padded, shapes=((3, 10, 10),)),
    "resized": NetCase(make=Resized, shapes=((3, 5, 4),)),
    "two_inputs": NetCase(make=TwoInputs, shapes=((3, 9, 9), (5,))),
    "mobile": NetCase(make=Mobile, shapes=((3, 12, 12),)),
    "edges": NetCase(make=Edges, shapes=((3, 7, 8),)),
    "gates": NetCase(make=Gates, shapes=((3, 6, 7),)),
    "reductions": NetCase(make=Reductions, shapes=((3, 6, 7),), exact=False),
    "tied": NetCase(make=Tied, shapes=((8,),)),
    "recurrent": NetCase(make=Recurrent, shapes=((6, 12),), exact=False),
    "cells": NetCase(make=Cells, shapes=((4, 12),), exact=False),
    "clips": NetCase(make=Clips, shapes=((3, 8, 12, 12),)),
    "segmenter": NetCase(make=Segmenter, shapes=((1, 8, 12, 12),)),
    "carried": NetCase(make=Carried, shapes=((5, 6), (2, 8), (2, 10)), exact=False),
}

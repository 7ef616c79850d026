"""The networks of ``peers.py``: of images, of clips, a transformer encoder and recurrent ones.

Weights are random, which is fine for speed. Batch norms hold the statistics of random inputs and
random factors, so that folding them changes every weight and activations keep their size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

# Inputs, outputs, kernel and, if not one, stride → a convolution and its norm.
ConvNorm = Callable[..., nn.Sequential]
# Samples whose statistics the batch norms take.
_STATISTICS_SAMPLES = 16


def conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution with 'same' padding and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def conv_norm_3d(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return what ``conv_norm`` does, of volumes."""
    conv = nn.Conv3d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside an identity, or beside a 1×1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, conv: ConvNorm = conv_norm) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.conv2 = conv(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv1(x))
        return functional.relu(self.conv2(y) + self.shortcut(x))


def basic_stages(widths: tuple[int, ...], blocks: int, conv: ConvNorm = conv_norm) -> nn.Sequential:
    """Return residual stages; each but the first halves the resolution."""
    layers, inputs = [], widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(inputs, width, 2 if stage and not block else 1, conv))
            inputs = width
    return nn.Sequential(*layers)


def resnet18() -> nn.Module:
    """ResNet-18 for 224×224 images and 1,000 classes (He et al. 2015)."""
    return nn.Sequential(
        conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        basic_stages((64, 128, 256, 512), blocks=2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000),
    )  # fmt: skip


def r3d18() -> nn.Module:
    """R3D-18 for clips of 400 classes (Tran et al. 2018)."""
    stem = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    return nn.Sequential(
        stem, nn.BatchNorm3d(64), nn.ReLU(),
        basic_stages((64, 128, 256, 512), 2, conv_norm_3d),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(512, 400),
    )  # fmt: skip


def resnet20() -> nn.Module:
    """ResNet-20 for 32×32 images and 10 classes, with 1×1 shortcuts."""
    return nn.Sequential(
        conv_norm(3, 16, 3), nn.ReLU(),
        basic_stages((16, 32, 64), blocks=3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter depthwise by 3×3, project by 1×1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        expand = [] if expansion == 1 else [conv_norm(inputs, hidden, 1), nn.ReLU6()]
        depthwise = [conv_norm(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*expand, *depthwise, conv_norm(hidden, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


# Expansion, channels, blocks and stride of each stage (Sandler et al. 2018, table 2).
_INVERTED_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenetv2() -> nn.Module:
    """MobileNetV2 for 224×224 images and 1,000 classes."""
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    for expansion, width, blocks, stride in _INVERTED_STAGES:
        for block in range(blocks):
            layers.append(InvertedResidual(inputs, width, 1 if block else stride, expansion))
            inputs = width
    layers += [conv_norm(inputs, 1280, 1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


class EncoderLayer(nn.Module):
    """Self-attention and a GELU feed-forward, layer norms after the sums."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def _split(self, x: Tensor) -> Tensor:
        """Return [B, T, D] as [B, heads, T, D / heads]."""
        batch, tokens, width = x.shape
        return x.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = self.norm1(x + self.project(attended.transpose(1, 2).reshape(x.shape)))
        return self.norm2(x + self.contract(functional.gelu(self.expand(x))))


def encoder() -> nn.Module:
    """Six layers, 384 wide, 12 heads, 1,536 hidden."""
    return nn.Sequential(*(EncoderLayer(384, 12, 1536) for _ in range(6)))


class Recogniser(nn.Module):
    """A recurrent network that hears 50 frames of 40 features: [B, 50, 40] → [B, 12]."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.layers, self.head = layer(40, 128, 2, batch_first=True), nn.Linear(128, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0][:, -1])


@dataclass(frozen=True, kw_only=True)
class PeerNet:
    """A network of the benchmark.

    Args:
        name: How the command line calls it.
        structure: Makes the module, weights not set.
        shape: Shape of one sample.
        transformer: True where a quantizer should take it as a transformer.
    """

    name: str
    structure: Callable[[], nn.Module]
    shape: tuple[int, ...]
    transformer: bool = False

    def build(self) -> nn.Module:
        """Return the network in eval mode; the same weights every time on one machine."""
        torch.manual_seed(0)
        module = self.structure()
        norms = [
            layer
            for layer in module.modules()
            if isinstance(layer, (nn.BatchNorm2d, nn.BatchNorm3d))
        ]
        generator = torch.Generator().manual_seed(1)
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.75, 1.25, generator=generator)
            nn.init.normal_(norm.bias, 0.0, 0.1, generator=generator)
            norm.momentum = None  # plain averages of what follows
        if norms:
            with torch.no_grad():
                module.train()(self.samples(_STATISTICS_SAMPLES, seed=2))
        return module.eval()

    def samples(self, count: int, seed: int) -> Tensor:
        """Return standard normal inputs, float32 [count, *shape]."""
        return torch.randn((count, *self.shape), generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    net.name: net
    for net in (
        PeerNet(name="resnet18", structure=resnet18, shape=(3, 224, 224)),
        PeerNet(name="mobilenetv2", structure=mobilenetv2, shape=(3, 224, 224)),
        PeerNet(name="r3d18", structure=r3d18, shape=(3, 8, 64, 64)),
        PeerNet(name="resnet20", structure=resnet20, shape=(3, 32, 32)),
        PeerNet(name="encoder", structure=encoder, shape=(128, 384), transformer=True),
        PeerNet(name="lstm", structure=partial(Recogniser, nn.LSTM), shape=(50, 40)),
        PeerNet(name="gru", structure=partial(Recogniser, nn.GRU), shape=(50, 40)),
    )
}

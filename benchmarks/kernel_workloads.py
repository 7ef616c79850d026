"""The shapes that ``benchmarks/kernels.py`` times: layers of four networks, and few-row linears."""

from __future__ import annotations

from mpq_compile.kernels.workload import ConvWorkload, LinearWorkload, Workload


def conv(
    size: int, channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> ConvWorkload:
    """Return a square convolution with 'same' padding."""
    pad = (kernel - 1) // 2
    return ConvWorkload(
        batch=1,
        height=size,
        width=size,
        in_channels=channels,
        out_channels=out,
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(pad,) * 4,
        groups=groups,
    )


def linear(rows: int, inputs: int, outputs: int) -> LinearWorkload:
    """Return a linear layer."""
    return LinearWorkload(rows=rows, in_features=inputs, out_features=outputs)


def depthwise(size: int, channels: int, stride: int = 1, kernel: int = 3) -> ConvWorkload:
    """Return a depthwise convolution."""
    return conv(size, channels, channels, kernel, stride, channels)


def _pointwise(cases: list[tuple[int, int, int]]) -> dict[str, Workload]:
    return {f"mobilenetv2 {c}>{n}@{s} 1x1": conv(s, c, n, kernel=1) for s, c, n in cases}


def _spatial(cases: list[tuple[int, int, int]]) -> dict[str, Workload]:
    return {
        f"mobilenetv2 depthwise {c}@{s} s{stride}": depthwise(s, c, stride)
        for s, c, stride in cases
    }


WORKLOADS: dict[str, Workload] = {
    "resnet18 stem 3>64@224 7x7 s2": conv(224, 3, 64, kernel=7, stride=2),
    "resnet18 64@56": conv(56, 64, 64),
    "resnet18 64>128@56 s2": conv(56, 64, 128, stride=2),
    "resnet18 64>128@56 1x1 s2": conv(56, 64, 128, kernel=1, stride=2),
    "resnet18 128@28": conv(28, 128, 128),
    "resnet18 128>256@28 s2": conv(28, 128, 256, stride=2),
    "resnet18 128>256@28 1x1 s2": conv(28, 128, 256, kernel=1, stride=2),
    "resnet18 256@14": conv(14, 256, 256),
    "resnet18 256>512@14 s2": conv(14, 256, 512, stride=2),
    "resnet18 256>512@14 1x1 s2": conv(14, 256, 512, kernel=1, stride=2),
    "resnet18 512@7": conv(7, 512, 512),
    "resnet18 linear 1x512x1000": linear(1, 512, 1000),
    "mobilenetv2 stem 3>32@224 s2": conv(224, 3, 32, stride=2),
    **_pointwise(
        [
            (112, 32, 16), (112, 16, 96), (56, 96, 24), (56, 24, 144), (56, 144, 24),
            (28, 144, 32), (28, 32, 192), (28, 192, 32), (14, 192, 64), (14, 64, 384),
            (14, 384, 64), (14, 384, 96), (14, 96, 576), (14, 576, 96), (7, 576, 160),
            (7, 160, 960), (7, 960, 160), (7, 960, 320), (7, 320, 1280),
        ]
    ),
    **_spatial(
        [
            (112, 32, 1), (112, 96, 2), (56, 144, 1), (56, 144, 2), (28, 192, 1), (28, 192, 2),
            (14, 384, 1), (14, 576, 1), (14, 576, 2), (7, 960, 1),
        ]
    ),
    "resnet20 stem 3>16@32": conv(32, 3, 16),
    "resnet20 16@32": conv(32, 16, 16),
    "resnet20 16>32@32 s2": conv(32, 16, 32, stride=2),
    "resnet20 32@16": conv(16, 32, 32),
    "resnet20 32>64@16 s2": conv(16, 32, 64, stride=2),
    "resnet20 64@8": conv(8, 64, 64),
    "encoder qkv 128x384x1152": linear(128, 384, 1152),
    "encoder out 128x384x384": linear(128, 384, 384),
    "encoder up 128x384x1536": linear(128, 384, 1536),
    "encoder down 128x1536x384": linear(128, 1536, 384),
    "encoder scores 128x64x128": linear(128, 64, 128),
    "encoder mixing 128x128x64": linear(128, 128, 64),
    "other resnext 128@28 g32": conv(28, 128, 128, groups=32),
    "other depthwise 240@28 5x5": depthwise(28, 240, kernel=5),
    "other 64>256@56 1x1": conv(56, 64, 256, kernel=1),
    "other 1024>256@14 1x1": conv(14, 1024, 256, kernel=1),
    "other linear 128x768x3072": linear(128, 768, 3072),
}  # fmt: skip

# (inputs, outputs) of one-row linears whose weights come from memory.
GEMV_SIZES = ((4096, 4096), (4096, 11008))

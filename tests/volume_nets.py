"""Small networks of volumes: clips of frames, and scans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Factored(nn.Module):
    """A residual block whose convolutions are over space, then over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv3d(channels, 10, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.first = nn.BatchNorm3d(10)
        self.temporal = nn.Conv3d(10, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.second = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(self.spatial(x)))
        return F.relu(x + self.second(self.temporal(y)))


class Clips(nn.Module):
    """[B, 3, 8, 12, 12] → [B, 5]: strides, residuals, depthwise, pools, two paths over time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (3, 5, 5), (1, 2, 2), (1, 2, 2), bias=False),
            nn.BatchNorm3d(8),
            nn.ReLU(),
        )
        self.block = _Factored(8)
        self.pool = nn.MaxPool3d((2, 3, 3), (2, 1, 1), (0, 1, 1))
        self.depthwise = nn.Conv3d(8, 8, 3, (2, 1, 1), 1, groups=8)
        self.slow = nn.Conv3d(8, 6, 1)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(self.stem(x))
        fast = F.hardswish(self.depthwise(self.pool(y)))
        slow = F.relu(self.slow(y[:, :, ::4]))
        joined = torch.cat([fast, slow], 1)
        return self.head(F.adaptive_avg_pool3d(joined, 1).flatten(1))


class Segmenter(nn.Module):
    """[B, 1, 8, 12, 12] → [B, 2, 8, 12, 12]: down, up by transposed convolutions, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 6, 3, padding=1)
        self.down = nn.Conv3d(6, 12, 3, 2, 1)
        self.up = nn.ConvTranspose3d(12, 6, 2, 2)
        self.smooth = nn.ConvTranspose3d(12, 5, 3, 2, 1, 1)
        self.deep = nn.Conv3d(12, 4, 1)
        self.last = nn.Conv3d(21, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.leaky_relu(self.first(x), 0.1)
        deep = F.relu(self.down(skip))
        ways = [F.relu(self.up(deep)), F.relu(self.smooth(deep))]
        ways.append(F.interpolate(self.deep(deep), scale_factor=2.0))
        return self.last(torch.cat([skip, *ways], 1))

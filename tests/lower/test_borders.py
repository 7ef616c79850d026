"""A convolution stores the padding of the next one where nothing else reads its output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpq_compile as mpq
from mpq_compile.kernels.tier import host_tiers


class Net(nn.Module):
    """Pointwise → depthwise → pointwise with a residual, then two readers of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(16, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.project = nn.Conv2d(48, 16, 1)
        self.left = nn.Conv2d(16, 20, 3, padding=1)
        self.right = nn.Conv2d(16, 20, 3, padding=1)
        self.wide = nn.Conv2d(20, 24, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.expand(x))
        y = self.project(torch.relu(self.depthwise(y)))
        x = torch.relu(y + x)
        return self.wide(torch.relu(self.left(x))) + self.wide(torch.relu(self.right(x)))


def test_borders_stand_where_only_convolutions_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # On tiles these narrow runs are copied anyway, to fill 64 bytes: no border would help.
    plain = next(tier for tier in host_tiers() if tier.dot != "amx")
    monkeypatch.setenv("MPQ_TIER", plain.name)
    torch.manual_seed(1)
    batches = [torch.randn(2, 16, 12, 11) for _ in range(2)]
    net = mpq.assign(Net().eval(), batches[0], batches, "w8a8")
    kernels = {row.site.partition(":")[0]: row.kernel for row in net.audit}
    assert "_border1x1x1x1" in kernels["expand"]
    assert "_bordered" in kernels["depthwise"] and "_border1" not in kernels["depthwise"]
    assert "_border1x1x1x1" in kernels["project"]
    assert "_bordered" in kernels["left"] and "_bordered" in kernels["right"]
    assert "_border2x2x2x2" in kernels["left"]
    assert torch.equal(net(batches[1]), net.reference(batches[1]))

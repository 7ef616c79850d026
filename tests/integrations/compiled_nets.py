"""Small networks for the tests of the ``torch.compile`` backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq_compile.integrations.torch_backend  # noqa: F401 - registers the backend

# What only exactness needs: no search of codes or schedules, no timing.
QUICK: dict[str, Any] = {"rounding": "nearest", "tuned": False, "verify": False}


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Begin and end with nothing compiled: code that Dynamo compiled outlives its model."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Plain(nn.Module):
    """Convolution, batch norm, pooling and a linear layer behind a view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 10]."""
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(x.mean((2, 3)).view(x.size(0), -1))


class Block(nn.Module):
    """A convolution that is used twice, with a graph break in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 8, H, W] → the same."""
        x = self.conv(x).relu()
        torch._dynamo.graph_break()
        return x + self.conv(x)


class Broken(nn.Module):
    """Two blocks of one class: six parts, which take four graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 10]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Whole(Broken):
    """The same without graph breaks: what the parts are compared with."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 10]."""
        x = self.stem(x)
        for block in self.blocks:
            assert isinstance(block, Block)
            y = block.conv(x).relu()
            x = y + block.conv(y)
        return self.head(x.mean((2, 3)))


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """Return samples, float32 [count, 3, size, size]."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def built(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """Return a network in eval mode with weights that the seed tells."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return model.eval()


# A call, and the batches that calibrate.
X = images(1, seed=1)
DATA = [images(32, seed=2), images(8, seed=3)]


def compiled_by(model: Any, calibration: Any = DATA, **options: Any) -> Any:
    """Compile with quick options; ``calibration=None`` leaves it to a context."""
    given = {} if calibration is None else {"calibration": calibration}
    return torch.compile(model, backend="mpq", options={**QUICK, **given, **options})

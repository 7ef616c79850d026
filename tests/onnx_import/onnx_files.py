"""Networks that the tests of ONNX import export, and the exporter's settings."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Small(nn.Module):
    """Convolutions with a norm and a residual, pooling, and a linear layer behind a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Hardswish())
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(x + self.blocks(x), 2)
        return self.fc(x.flatten(1))


def small() -> nn.Module:
    """Return the network with a norm that has seen something."""
    torch.manual_seed(0)
    model = Small()
    model(torch.randn(16, 3, 8, 8))
    return model.eval()


def export(
    model: nn.Module, example: Tensor, path: Path, *, free: bool = True, dynamo: bool = False
) -> Path:
    """Write a network to ``path``; ``free`` leaves the batch free."""
    options: dict[str, object] = {"dynamo": dynamo, "input_names": ["x"]}
    if dynamo:
        example = torch.cat([example, example])
        options.update(external_data=False, verbose=False)
        options.update({"dynamic_shapes": ({0: torch.export.Dim.AUTO},)} if free else {})
    elif free:
        options.update(dynamic_axes={"x": {0: "batch"}})
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (example,), str(path), **options)  # type: ignore[arg-type]
    return path

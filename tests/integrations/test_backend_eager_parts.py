"""``torch.compile(model, backend="mpq")``: what cannot be quantized, and what is said of it."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from compiled_nets import (
    X,
    built,
    compiled_by,
    images,
    nothing_compiled,  # noqa: F401 - for every test
)
from torch import Tensor, nn

import mpq_compile as mpq


class Partly(nn.Module):
    """The part behind the graph break has an operator without a lowering."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 8, 8] → [B, 4, 6, 6]."""
        x = self.first(x)
        torch._dynamo.graph_break()
        return torch.linalg.matrix_exp(self.second(x) * 0.01)


def test_what_falls_back_is_said() -> None:
    model = Partly().eval()
    compiled = compiled_by(model, assignment="w8a8")
    with pytest.warns(RuntimeWarning, match="second.*eager PyTorch"):
        y = compiled(X)
    exact = model(X)
    assert (y - exact).norm() < 0.05 * exact.norm()
    explained = mpq.explain(compiled)
    assert [part.status for part in explained.parts] == ["compiled", "eager"]
    [eager] = explained.eager
    assert "matrix_exp" in eager.reason and eager.layers == ["second"]
    assert "reason: " in str(explained) and json.dumps(explained.to_json())


class Stateful(nn.Module):
    """A part without state, one that changes a buffer as ``how`` says, and one that reads it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, 8, 8] → [B, 4, 6, 6]."""
        x = self.first(x)
        torch._dynamo.graph_break()
        if self.how == "writes":
            self.calls += 1
        else:
            self.calls = self.calls + 1
        x = self.second(x)
        torch._dynamo.graph_break()
        return self.third(x) + self.calls


@pytest.mark.parametrize("how", ["writes", "replaces"])
def test_a_part_that_changes_a_buffer_runs_in_eager_pytorch(how: str) -> None:
    """A network has no state. Calibration leaves no trace in it, and each call changes it once."""
    torch.manual_seed(0)
    model = Stateful(how).eval()
    exact = copy.deepcopy(model)
    compiled = compiled_by(model, assignment="w8a8")
    with pytest.warns(RuntimeWarning, match="second.*eager PyTorch: it uses calls, which"):
        compiled(X)
    exact(X)
    for x in (X, X, images(3, seed=5)):
        expected, found = exact(x), compiled(x)
        assert torch.equal(model.calls, exact.calls)
        assert (found - expected).norm() < 0.05 * expected.norm()
    explained = mpq.explain(compiled)
    assert [part.status for part in explained.parts] == ["compiled", "eager", "eager"]
    assert all("calls of the model change" in part.reason for part in explained.eager)


class WritesInput(nn.Module):
    """It writes into what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 4, H - 2, W - 2]."""
        y = self.conv(x)
        x.add_(1)
        return y


class Counter(WritesInput):
    """It counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, 4, H - 2, W - 2]."""
        self.calls += 1
        return self.conv(x) + self.calls


@pytest.mark.parametrize(
    ("model", "dtype", "size", "found", "remedy"),
    [
        (nn.ReLU(), torch.float32, 8, "nothing to quantize", "a convolution"),
        (nn.Conv2d(3, 4, 3), torch.float32, 12, r"\[8, 3, 12, 12\].*\[1, 3, 8, 8\]", "first call"),
        (nn.Conv2d(3, 4, 3), torch.float64, 8, "float32", r"model.float\(\)"),
        (nn.Conv2d(3, 4, 3), torch.bfloat16, 8, "float32", r"model.float\(\)"),
        (WritesInput(), torch.float32, 8, "writes into its inputs", "return a new tensor"),
        (Counter(), torch.float32, 8, "calls of the model change", "keep that out"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(4)), torch.float32, 8)
        + ("adaptive_max_pool2d", "allow_float=True"),
    ],
)
def test_the_remedy_follows_from_why_nothing_is_quantized(
    model: nn.Module, dtype: torch.dtype, size: int, found: str, remedy: str
) -> None:
    compiled = compiled_by(model.to(dtype).eval(), [images(8, size).to(dtype)], assignment="w8a8")
    with pytest.raises(mpq.PlanError, match="no part of the model can be quantized") as caught:
        compiled(images(1).to(dtype))
    assert re.search(found, str(caught.value.found))
    assert re.search(remedy, str(caught.value.remedy))
    assert ("allow_float" in str(caught.value.remedy)) == ("allow_float" in remedy)


def test_a_model_that_dynamo_skips_is_explained() -> None:
    compiled = compiled_by(nn.GRU(3, 4).eval(), [torch.rand(5, 2, 3)], assignment="w8a8")
    compiled(torch.rand(5, 2, 3))
    with pytest.raises(mpq.PlanError, match="Dynamo made none.*\n.*graph_breaks"):
        mpq.explain(compiled)


class Recurrent(nn.Module):
    """A layer that Dynamo compiles, and two that run in Python: a GRU and what comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 8, 3)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu().transpose(1, 2)
        rows, _ = self.gru(x)
        return self.head(rows[:, -1])


def test_layers_that_dynamo_leaves_to_python_are_named() -> None:
    model = built(Recurrent)
    compiled = compiled_by(model, [torch.rand(2, 3, 12)], assignment="w8a8")
    with pytest.warns(RuntimeWarning, match="weights of gru, head: where calls use them"):
        compiled(torch.rand(2, 3, 12))
    assert "weights of gru, head" in str(mpq.explain(compiled))

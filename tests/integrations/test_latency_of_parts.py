"""One bound on the latency of a model that graph breaks cut into parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiled_nets import QUICK, images, nothing_compiled  # noqa: F401 - for every test
from torch import Tensor, nn

import mpq_compile as mpq

DATA = [images(16, seed=2)]


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        torch._dynamo.graph_break()
        return self.second(y).mean((2, 3))


def compiled_within(latency_ms: float) -> Any:
    torch.manual_seed(0)
    given = {"calibration": DATA, "budget": {"latency_ms": latency_ms}}
    options = {**QUICK, **given, "candidates": ["w8a8"]}
    return torch.compile(Halves().eval(), backend="mpq", options=options)


@pytest.mark.slow  # ten to thirty fresh processes: seconds, and minutes beside other work
def test_the_parts_together_are_measured_within_it() -> None:
    compiled = compiled_within(200.0)
    compiled(images(1, seed=1))
    explained = mpq.explain(compiled)
    assert [part.status for part in explained.parts] == ["compiled"] * 2
    assert explained.plan.budget == {"latency_ms": 200.0}
    predicted = explained.plan.predicted
    assert 0 < predicted.latency_ms <= predicted.latency_ms_upper95 <= 200.0


def test_parts_that_cannot_keep_it_are_refused() -> None:
    with pytest.raises(Exception, match="latency_ms") as caught:
        compiled_within(1e-6)(images(1, seed=1))
    causes = [caught.value, caught.value.__cause__, getattr(caught.value, "inner_exception", None)]
    assert any(isinstance(cause, mpq.InfeasibleBudgetError) for cause in causes)

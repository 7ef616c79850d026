"""Fine-tuning of recurrent networks: steps that give two results, one weight for all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpq_compile as mpq


class Last(nn.Module):
    """[B, 6, 10] → [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(10, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize("candidate", ["w4a8", "w4a16"])
def test_steps_train_one_weight(candidate: str) -> None:
    torch.manual_seed(0)
    model, x = Last().eval(), torch.randn(64, 6, 10)
    plan = mpq.plan(
        model, x[:1], [x], budget=mpq.Budget(avg_bits=4), candidates=[candidate], tuned=False
    )
    net = mpq.finetune(plan, x.split(32), model, x[:1], epochs=1, tuned=False)
    assert torch.allclose(net(x), net.reference(x), atol=1e-2)
    assert net.size_bytes == net.plan.predicted.size_bytes
    with torch.no_grad():
        exact = model(x)
    assert (net(x) - exact).square().sum() < 0.01 * exact.square().sum()

"""A network with an embedding is planned to a latency: its kernel is timed like any other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import mpq_compile as mpq


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(30, 32), nn.Linear(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.table(ids)))


def test_a_latency_budget_with_an_embedding() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 30, (16, 6))
    plan = mpq.plan(Tokens().eval(), ids[:1], [ids], budget=mpq.Budget(latency_ms=1000.0))
    assert set(plan.assignment) == {"table:embedding#0", "head:linear#0"}
    assert plan.predicted.latency_ms is not None

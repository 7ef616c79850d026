"""What transformers compute of ids, masks and positions has a form in ONNX, with any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exported import compare, materialized, run, steps_off
from torch import Tensor, nn

from mpq_compile.deploy import complete_assignment
from mpq_compile.integrations.qdq.graph import Export
from mpq_compile.recipe import Recipe
from mpq_compile.session import Session

Formula = Callable[[Tensor, Tensor], Tensor]


class Masked(nn.Module):
    """Applies a formula to hidden values [B, 9, 16] of ids [B, 9], and to the ids."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed, self.fc, self.formula = nn.Embedding(20, 16), nn.Linear(16, 16), formula

    def forward(self, ids: Tensor) -> Tensor:
        return self.formula(self.fc(self.embed(ids)), ids)


def padded(ids: Tensor) -> Tensor:
    return (ids != 0)[..., None]


FORMULAS: dict[str, Formula] = {
    "mean_over_mask": lambda x, ids: (x * padded(ids)).sum(1) / padded(ids).float().sum(1).clamp(1),
    "normalized": lambda x, ids: nn.functional.normalize(x, dim=-1),
    "norm_of_one": lambda x, ids: x / x.norm(1, -1, True).clamp_min(1e-6),
    "norm_of_three": lambda x, ids: x / torch.linalg.vector_norm(x, 3, (1, 2), True),
    "largest": lambda x, ids: x / torch.linalg.vector_norm(x, float("inf"), -1, True),
    "equal": lambda x, ids: x * (ids == ids.flip(1))[..., None],
    "compared": lambda x, ids: torch.where((x < 0.1) & (x >= -0.3), x, 0.0),
    "between_types": lambda x, ids: x * (ids > 2.5)[..., None] + (ids <= 7.5)[..., None],
    "either": lambda x, ids: x.masked_fill(torch.logical_or(x > 0.5, ids[..., None] == 3), -1.0),
    "not": lambda x, ids: x.masked_fill(~padded(ids), 0.0) + torch.logical_not(ids)[..., None],
    "one_of_two": lambda x, ids: x * torch.logical_xor(ids, ids % 2 == 1)[..., None],
    "positions": lambda x, ids: x + ((ids != 0).int().cumsum(1).type_as(ids) * ids)[..., None],
    "differences": lambda x, ids: x + torch.diff(ids, 1, prepend=ids[:, :1])[..., None],
    "changes": lambda x, ids: x * torch.diff(ids > 4, 1, append=ids[:, :1] > 4)[..., None],
    "twice": lambda x, ids: x[:, 2:] + torch.diff(x, 2, 1),
    "gathered": lambda x, ids: x.gather(1, ids[..., None].expand(-1, -1, 16) % 9),
    "rolled": lambda x, ids: x + x.roll((-1, 5), (1, -1)) * ids.roll(9, 1)[..., None],
    "extremes": lambda x, ids: x - x.amax(1, True) + x.amin((1, 2), True),
    "bounds": lambda x, ids: torch.maximum(x, x.flip(1)).clamp_max(0.4) + torch.minimum(x, x * 2),
    "functions": lambda x, ids: torch.erf(x) + x.sin() * x.cos() + (x.abs() + 1).log().sign(),
    "remainders": lambda x, ids: torch.remainder(x, -0.3) + torch.remainder(ids - 9, 4)[..., None],
    "divided_ids": lambda x, ids: x + (ids / 2).floor()[..., None] - (2 - ids)[..., None],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_of_masks(name: str) -> None:
    """All is float here, so that nothing but the order of sums differs."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 20, (6, 9), generator=generator)
    graph = exportable(Masked(FORMULAS[name]), (ids,), "fp32")
    model = Export(graph).model()
    for batch in (ids, ids[:1]):
        found = run(model, [batch])
        assert steps_off(found, graph.module(batch)).max() < 0.01


def test_all_values_rolled_as_one() -> None:
    """Samples mix, so that the batch is fixed."""
    ids = torch.arange(9)[None]
    graph = exportable(Masked(lambda x, ids: x + x.roll(-20)), (ids,), "fp32")
    found = run(Export(graph).model(), [ids])
    assert steps_off(found, graph.module(ids)).max() < 0.01


def exportable(model: nn.Module, inputs: tuple[Tensor, ...], candidate: str) -> Any:
    """As ``materialized``, with operators that run in float."""
    session = Session(
        model.eval(),
        tuple(value[:1] for value in inputs),
        [inputs],
        "bit_serial",
        recipe=Recipe(rounding="nearest"),
        allow_float=True,
    )
    return session.materialized(complete_assignment(session.network, candidate))


class Written(nn.Module):
    """A step of a cache: rows are written at a position that the call gives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, cache: Tensor, position: Tensor) -> Tensor:
        return cache.index_copy(1, position, self.fc(x))


def test_rows_are_written_at_positions() -> None:
    x, cache, position = torch.randn(2, 3, 8), torch.randn(2, 7, 8), torch.tensor([4, 0, 6])
    session = Session(Written().eval(), (x, cache, position), [(x, cache, position)], "bit_serial")
    graph = session.materialized(complete_assignment(session.network, "w8a8"))
    assert (compare(graph, [x, cache, position]) <= 1).all()


def test_written_attention_with_a_guard() -> None:
    """As exporters write it; a row whose keys are all hidden comes out as zeros."""

    class Attended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(6)
            self.embed, self.qkv = nn.Embedding(20, 16), nn.Linear(16, 48)

        def forward(self, ids: Tensor) -> Tensor:
            q, k, v = self.qkv(self.embed(ids)).chunk(3, -1)
            hidden = torch.where(ids == 0, float("-inf"), 0.0)[:, None]
            weights = torch.softmax(q @ k.mT / 4 + hidden, -1)
            return weights.masked_fill(weights.isnan(), 0.0) @ v

    ids = torch.randint(0, 20, (6, 9), generator=torch.Generator().manual_seed(2))
    ids[2] = 0
    graph = materialized(Attended().eval(), [ids], "w8a8")
    assert not graph.module(ids)[0][2].any()
    assert (compare(graph, [ids]) <= 1).all()
